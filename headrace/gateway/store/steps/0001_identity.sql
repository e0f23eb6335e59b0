-- Who may ask. Times are Unix seconds. `generation` changes with every write that the gateways must notice.
CREATE TABLE generation (id BIGINT PRIMARY KEY CHECK (id = 1), value BIGINT NOT NULL);
INSERT INTO generation VALUES (1, 0);
CREATE TABLE secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE tenants (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    created_s BIGINT NOT NULL,
    disabled_s BIGINT
);
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenants (id),
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    models TEXT,
    digest TEXT NOT NULL,
    previous_digest TEXT,
    previous_until_s BIGINT,
    created_s BIGINT NOT NULL,
    expires_s BIGINT,
    revoked_s BIGINT
);
CREATE INDEX keys_of_tenant ON keys (tenant_id);
