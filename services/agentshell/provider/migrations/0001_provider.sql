-- What models answered, so that a repeated request_id gets the first answer and calls no vendor.

CREATE TABLE provider.answers (
    tenant_id      text        NOT NULL,
    request_id     text        NOT NULL,
    request_digest bytea       NOT NULL,  -- Of the Generation that was asked: another one under the same id is refused.
    response       bytea       NOT NULL,  -- kfm.provider.v1.GenerateResponse
    create_time    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, request_id)
);
CREATE INDEX answers_by_age ON provider.answers (create_time);
