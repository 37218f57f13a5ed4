-- Whose records are, how they are listed and how they end, and what is left when they are forgotten.

-- Empty: nobody has said.
ALTER TABLE records ADD COLUMN user_id text COLLATE "C" NOT NULL DEFAULT '';
-- What a summary was made of.
ALTER TABLE records ADD COLUMN source_record_ids text[];

CREATE INDEX records_by_create_time ON records (place, create_time, record_id);
CREATE INDEX records_by_update_time ON records (place, update_time, record_id);
CREATE INDEX records_by_tenant ON records (tenant_id, namespace, record_id);
CREATE INDEX records_by_user ON records (tenant_id, user_id, namespace, record_id) WHERE user_id <> '';
CREATE INDEX records_by_expire_time ON records (expire_time) WHERE expire_time IS NOT NULL;

-- Keys of a place's records, found before the wall by indexes that are of no use behind it.
CREATE FUNCTION of_document(looked_in text, uri text) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT record_id FROM memory.records
    WHERE place = looked_in AND hashtextextended(source_uri, 0) = hashtextextended(uri, 0) AND source_uri = uri
$$;
CREATE FUNCTION containing(looked_in text, filter jsonb) RETURNS SETOF text
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT record_id FROM memory.records WHERE place = looked_in AND metadata @> filter
$$;

-- Empty: nobody has said.
ALTER TABLE sessions ADD COLUMN user_id text COLLATE "C" NOT NULL DEFAULT '';
CREATE INDEX sessions_by_user ON sessions (tenant_id, user_id, session_id) WHERE user_id <> '';

-- Says that something was forgotten, and holds no text of it.
CREATE TABLE receipts (
    tenant_id     text COLLATE "C" NOT NULL,
    receipt_id    text COLLATE "C" NOT NULL,  -- A ULID: the newest is the last.
    namespace     text COLLATE "C" NOT NULL,  -- Empty: all, for a user.
    user_id       text COLLATE "C" NOT NULL,  -- Empty: not all of one was forgotten.
    what          text             NOT NULL,
    record_count  bigint           NOT NULL,
    message_count bigint           NOT NULL,
    principal_id  text             NOT NULL,
    create_time   timestamptz      NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, receipt_id)
);
SELECT wall('receipts');
CREATE INDEX receipts_by_user ON receipts (tenant_id, user_id, receipt_id) WHERE user_id <> '';
