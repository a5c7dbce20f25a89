"""The engine that keeps a store in a schema of a PostgreSQL database. Needs the extra `postgres`."""
