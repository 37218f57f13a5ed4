-- Turns that wait for somebody, as folded: who owns their partition loads one when it goes on.
CREATE TABLE parked_turn (
    turn_id text PRIMARY KEY,
    partition int NOT NULL,
    -- The newest event that the turn has seen.
    folded_offset bigint NOT NULL,
    -- When somebody's time to answer is up.
    wake_time timestamptz NOT NULL,
    -- kfm.turn.v1.Turn, TurnRequested; kfm.event.v1.EventHeader of the newest event.
    turn bytea NOT NULL,
    requested bytea NOT NULL,
    header bytea NOT NULL
);

CREATE INDEX parked_turn_partition ON parked_turn (partition);
