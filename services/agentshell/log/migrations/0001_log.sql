-- The durable log: topics, their partitions, the records, and the groups that read them.

CREATE TABLE log.topics (
    topic_id   integer  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text     NOT NULL UNIQUE,
    partitions integer  NOT NULL CHECK (partitions > 0),
    durability text     NOT NULL CHECK (durability IN ('durable', 'relaxed')),
    retention  interval
);

-- One counter row a partition: whoever appends locks it, so offsets are gapless and become visible in order.
CREATE TABLE log.partitions (
    partition_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic_id     integer NOT NULL REFERENCES log.topics,
    partition    integer NOT NULL,
    base_offset  bigint  NOT NULL DEFAULT 0,
    next_offset  bigint  NOT NULL DEFAULT 0,
    UNIQUE (topic_id, partition)
) WITH (fillfactor = 20);  -- Room for the counter's next versions on the same page.

CREATE TABLE log.records (
    partition_id  integer     NOT NULL,
    record_offset bigint      NOT NULL,
    append_time   timestamptz NOT NULL,
    key           text        NOT NULL,
    record_id     bytea       NOT NULL,
    headers       jsonb,
    payload       bytea       STORAGE EXTERNAL NOT NULL,
    PRIMARY KEY (partition_id, record_offset)
);
-- A key keeps to its partition: what is unique here is unique in the topic, and the counter's lock guards it.
CREATE UNIQUE INDEX records_by_id ON log.records (partition_id, record_id);

CREATE TABLE log.groups (
    group_id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic_id   integer NOT NULL REFERENCES log.topics,
    name       text    NOT NULL,
    generation bigint  NOT NULL DEFAULT 0,
    UNIQUE (topic_id, name)
);

-- A member lives as long as its lease and its process do.
CREATE TABLE log.members (
    group_id    integer     NOT NULL REFERENCES log.groups,
    member      text        NOT NULL,
    process     integer     NOT NULL,
    lease_until timestamptz NOT NULL,
    partitions  integer[]   NOT NULL,
    PRIMARY KEY (group_id, member)
);

CREATE TABLE log.commits (
    group_id    integer NOT NULL REFERENCES log.groups,
    partition   integer NOT NULL,
    next_offset bigint  NOT NULL,
    PRIMARY KEY (group_id, partition)
);

-- The processes that live: each holds an advisory lock for as long as it is connected. 7564 names the log's locks.
CREATE VIEW log.processes AS
SELECT objid::bigint::integer AS process
FROM pg_locks
WHERE locktype = 'advisory' AND classid = 7564 AND objsubid = 2 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- Appends records, all or none, and returns one row each in the order given. An id that is there already keeps its
-- first offset. The arrays are parallel and hold no id twice. The planner settings here and below pin the index:
-- a plan made while the table was empty would read all of it later.
CREATE FUNCTION log.append(
    relaxed boolean, partition_ids integer[], keys text[], record_ids bytea[], headers jsonb[], payloads bytea[]
) RETURNS TABLE (record_offset bigint, append_time timestamptz, duplicate boolean)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    taken timestamptz;
BEGIN
    IF relaxed THEN
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    -- In one order for all processes, so that no two wait for each other.
    PERFORM FROM log.partitions WHERE partition_id = ANY (partition_ids) ORDER BY partition_id FOR NO KEY UPDATE;
    taken := clock_timestamp();
    RETURN QUERY
    WITH arriving AS (
        SELECT * FROM unnest(partition_ids, keys, record_ids, headers, payloads)
            WITH ORDINALITY AS a (partition_id, key, record_id, headers, payload, position)
    ), known AS MATERIALIZED (
        SELECT a.position, r.record_offset, r.append_time
        FROM arriving a JOIN log.records r USING (partition_id, record_id)
    ), fresh AS MATERIALIZED (
        SELECT a.*, p.next_offset - 1 + row_number() OVER (PARTITION BY partition_id ORDER BY a.position) AS record_offset
        FROM arriving a JOIN log.partitions p USING (partition_id)
        WHERE NOT EXISTS (SELECT FROM known k WHERE k.position = a.position)
    ), inserted AS (
        INSERT INTO log.records
        SELECT partition_id, record_offset, taken, key, record_id, headers, payload FROM fresh
    ), counted AS (
        UPDATE log.partitions p SET next_offset = f.next_offset
        FROM (SELECT partition_id, max(record_offset) + 1 AS next_offset FROM fresh GROUP BY partition_id) f
        WHERE p.partition_id = f.partition_id
    )
    SELECT record_offset, append_time, duplicate FROM (
        SELECT f.position, f.record_offset, taken AS append_time, false AS duplicate FROM fresh f
        UNION ALL SELECT k.position, k.record_offset, k.append_time, true FROM known k
    ) acks ORDER BY position;
END
$$;

-- Returns records from an offset on: at most so many, and no more once they are of so many bytes.
CREATE FUNCTION log.read(of_partition integer, from_offset bigint, max_records integer, max_bytes bigint)
RETURNS TABLE (
    record_offset bigint, append_time timestamptz, key text, record_id bytea, headers jsonb, payload bytea
)
LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
BEGIN
    FOR record_offset, append_time, key, record_id, headers, payload IN
        SELECT r.record_offset, r.append_time, r.key, r.record_id, r.headers, r.payload
        FROM log.records r
        WHERE r.partition_id = of_partition AND r.record_offset >= from_offset
        ORDER BY r.record_offset LIMIT max_records
    LOOP
        RETURN NEXT;
        max_bytes := max_bytes - length(payload);
        EXIT WHEN max_bytes <= 0;
    END LOOP;
END
$$;

-- Deletes at most so many of a partition's first records that are older than `cutoff`; returns how many.
CREATE FUNCTION log.trim(of_partition integer, cutoff timestamptz, max_records integer) RETURNS integer
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
DECLARE
    base    bigint;
    new_base bigint;
    deleted integer;
BEGIN
    SELECT base_offset INTO base FROM log.partitions WHERE partition_id = of_partition;
    SELECT coalesce(min(record_offset) FILTER (WHERE append_time >= cutoff), max(record_offset) + 1, base) INTO new_base
    FROM (
        SELECT r.record_offset, r.append_time FROM log.records r
        WHERE r.partition_id = of_partition AND r.record_offset >= base
        ORDER BY r.record_offset LIMIT max_records
    ) oldest;
    DELETE FROM log.records r
    WHERE r.partition_id = of_partition AND r.record_offset >= base AND r.record_offset < new_base;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    -- Last, because it holds up whoever appends.
    UPDATE log.partitions SET base_offset = new_base WHERE partition_id = of_partition AND base_offset < new_base;
    RETURN deleted;
END
$$;

-- Commits offsets for the holder of a generation; false when the generation is over. A commit that is lost with the
-- machine is only delivered again, so nobody waits for the disk.
CREATE FUNCTION log.commit(
    of_group integer, of_generation bigint, of_member text, partitions integer[], next_offsets bigint[]
) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM FROM log.groups g JOIN log.members m USING (group_id)
    WHERE g.group_id = of_group AND g.generation = of_generation AND m.member = of_member FOR SHARE OF g;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO log.commits SELECT of_group, * FROM unnest(partitions, next_offsets)
    ON CONFLICT ON CONSTRAINT commits_pkey DO UPDATE SET next_offset = excluded.next_offset;
    RETURN true;
END
$$;
