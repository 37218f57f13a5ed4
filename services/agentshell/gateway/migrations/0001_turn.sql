-- Where each turn is in the log, and what it had come to at `folded_offset`. Derived from the log: it may lag, never lead.
CREATE TABLE turn (
    tenant_id text NOT NULL,
    turn_id text NOT NULL,
    session_id text NOT NULL,
    state smallint NOT NULL,
    create_time timestamptz NOT NULL,
    request_digest bytea, -- of the request that made it; null where it was found in the log
    turns_offset bigint NOT NULL, -- its events in agent.turns are not before this
    outputs_offset bigint NOT NULL, -- its text in agent.outputs is not before this
    folded_offset bigint, -- of the newest event folded into `turn`; null while it is only claimed
    turn bytea NOT NULL, -- a kfm.turn.v1.Turn
    PRIMARY KEY (tenant_id, turn_id)
);
CREATE INDEX turn_by_time ON turn (tenant_id, create_time DESC, turn_id DESC);
CREATE INDEX turn_by_session ON turn (tenant_id, session_id, create_time DESC, turn_id DESC);
