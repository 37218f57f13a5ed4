-- Turns that are not over and do not wait for somebody: REQUESTED, RUNNING, CANCELLING.
CREATE INDEX turn_open ON turn (tenant_id) WHERE state IN (1, 2, 4);
