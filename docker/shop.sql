-- What the database of docker/compose.yaml begins with: two tables, and a role that may capture them.
CREATE TABLE customers (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL, email text);
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES customers,
    total numeric(12, 2) NOT NULL,
    placed timestamptz NOT NULL DEFAULT now()
);
INSERT INTO customers (name, email) SELECT 'customer ' || i, i || '@example.org' FROM generate_series(1, 1000) i;
INSERT INTO orders (customer_id, total) SELECT 1 + i % 1000, i % 500 FROM generate_series(1, 10000) i;

-- For trying out only: elsewhere `millrace grants` prints the least rights, and the role has a secret password.
CREATE ROLE cdc LOGIN REPLICATION PASSWORD 'only-for-trying-out';
GRANT CONNECT, CREATE ON DATABASE shop TO cdc;
ALTER TABLE customers OWNER TO cdc;
ALTER TABLE orders OWNER TO cdc;
