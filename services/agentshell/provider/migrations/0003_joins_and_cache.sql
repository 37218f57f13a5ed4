-- Calls under way under a request_id, so that a repeat elsewhere waits for the first. Unlogged: a claim is worth nothing
-- without the process that made it, and costs no write to the journal.
CREATE UNLOGGED TABLE provider.claim (
    tenant_id      text   NOT NULL,
    request_id     text   NOT NULL,
    request_digest bytea  NOT NULL,  -- Of the Generation that is asked.
    owner          bigint NOT NULL,  -- The advisory lock that its process holds while it lives.
    create_time    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, request_id)
);

CREATE INDEX claim_by_age ON provider.claim (create_time);

-- Answers that their tenant wants to have again (GenerateRequest.cache_ttl).
CREATE TABLE provider.cached_answer (
    tenant_id   text        NOT NULL,
    digest      bytea       NOT NULL,  -- Of the Generation and of the models that it leads to.
    response    bytea       NOT NULL,  -- kfm.provider.v1.GenerateResponse
    create_time timestamptz NOT NULL DEFAULT now(),
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, digest)
);
CREATE INDEX cached_answer_by_expiry ON provider.cached_answer (expire_time);
