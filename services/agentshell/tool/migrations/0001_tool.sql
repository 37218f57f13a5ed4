-- What tools answered, so that a repeated request_id gets the first result, and which attempt was the last.

CREATE TABLE tool.results (
    tenant_id      text        NOT NULL,
    request_id     text        NOT NULL,
    request_digest bytea       NOT NULL,  -- Of the call: another one under the same id is refused.
    attempt        integer     NOT NULL,  -- The highest that was seen; a lower one is refused.
    result         bytea,                 -- kfm.content.v1.ToolResult; null while the tool runs.
    use_time       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, request_id)
);
CREATE INDEX results_by_age ON tool.results (use_time);
