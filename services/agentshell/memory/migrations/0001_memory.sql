-- What agents remember: records to search, histories of sessions, and answers to repeated requests.

CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;

-- The words of a text that say something, any of which may match; NULL where there are none. Built by the parser that
-- reads the records, so no text can be malformed. At most 64 words, the first: each costs a look into the index.
CREATE FUNCTION any_word(query text) RETURNS tsquery LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT string_agg(
        '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''', ' | ' ORDER BY positions[1]
    )::tsquery
    FROM (SELECT lexeme, positions FROM unnest(to_tsvector('english', query)) ORDER BY positions[1] LIMIT 64) words
$$;

-- Names compare by their bytes, whatever the database's locale: pages end and begin at the same record everywhere.
CREATE TABLE records (
    tenant_id          text COLLATE "C" NOT NULL,
    namespace          text COLLATE "C" NOT NULL,
    -- Both in one word, which no other pair makes since a namespace has no space: what all queries ask for, so that the
    -- planner knows how many records that is.
    place              text COLLATE "C" NOT NULL GENERATED ALWAYS AS (namespace || ' ' || tenant_id) STORED,
    record_id          text COLLATE "C" NOT NULL,
    kind               smallint         NOT NULL,
    text               text             NOT NULL,
    metadata           jsonb,
    source_uri         text COLLATE "C",
    source_title       text,
    source_chunk_index integer,
    create_time        timestamptz      NOT NULL DEFAULT now(),
    update_time        timestamptz      NOT NULL DEFAULT now(),
    expire_time        timestamptz,
    version            bigint           NOT NULL DEFAULT 1,
    -- NULL where there is nothing to compare by.
    embedding          halfvec(2048),
    words              tsvector GENERATED ALWAYS AS
                           (to_tsvector('english', coalesce(source_title, '') || E'\n' || text)) STORED,
    PRIMARY KEY (place, record_id)
) WITH (toast_tuple_target = 8160);
-- The vector stays in its row (a page of 8 KiB holds both): an exact scan is then 4 times as fast as from TOAST.
ALTER TABLE records ALTER COLUMN embedding SET STORAGE MAIN;
ALTER TABLE records ALTER COLUMN embedding SET STATISTICS 0;

-- By a hash, since a URI may be longer than what a B-tree takes.
CREATE INDEX records_by_source ON records (place, hashtextextended(source_uri, 0));
CREATE INDEX records_by_words ON records USING gin (words);
CREATE INDEX records_by_metadata ON records USING gin (metadata jsonb_path_ops);
CREATE INDEX records_by_embedding ON records
    USING hnsw (embedding halfvec_cosine_ops) WITH (m = 16, ef_construction = 64);

-- Whoever appends locks its session's row, so positions have no gaps and commit in order.
CREATE TABLE sessions (
    tenant_id     text COLLATE "C" NOT NULL,
    session_id    text COLLATE "C" NOT NULL,
    message_count bigint           NOT NULL,
    PRIMARY KEY (tenant_id, session_id)
);
CREATE TABLE messages (
    tenant_id  text COLLATE "C" NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    position   bigint           NOT NULL,  -- Counts from 1.
    message    bytea            NOT NULL,  -- A kfm.content.v1.Message.
    PRIMARY KEY (tenant_id, session_id, position),
    FOREIGN KEY (tenant_id, session_id) REFERENCES sessions ON DELETE CASCADE
);

-- Requests answered, and with what. An answer holds no text: what is forgotten is not kept here.
CREATE TABLE requests (
    tenant_id   text COLLATE "C" NOT NULL,
    request_id  text COLLATE "C" NOT NULL,
    digest      bytea            NOT NULL,
    answer      bytea,  -- NULL within the transaction that makes it.
    create_time timestamptz      NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, request_id)
);
CREATE INDEX requests_by_age ON requests (create_time);
