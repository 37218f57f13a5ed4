-- Which vector of the index beside Postgres is whose.

-- A point is one vector of one writing of a record: another one when it is written again, and never used a second time.
CREATE TABLE vectors (
    place     text COLLATE "C" NOT NULL,  -- As in memory.records.
    record_id text COLLATE "C" NOT NULL,
    point     uuid             NOT NULL UNIQUE,
    dimension integer          NOT NULL,
    PRIMARY KEY (place, record_id),
    FOREIGN KEY (place, record_id) REFERENCES memory.records ON DELETE CASCADE
);

-- Points to take out of the index: those that are nobody's any more, at once; those that are put there by a transaction
-- under way, unless it commits, later than any such takes.
CREATE TABLE dead (
    point     uuid PRIMARY KEY,
    dimension integer     NOT NULL,
    ripe_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_by_time ON dead (ripe_time);

CREATE FUNCTION bury() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO memory_vectors.dead (point, dimension) VALUES (OLD.point, OLD.dimension)
    ON CONFLICT (point) DO UPDATE SET ripe_time = excluded.ripe_time;
    RETURN NULL;
END $$;
CREATE TRIGGER bury AFTER DELETE OR UPDATE OF point ON vectors FOR EACH ROW EXECUTE FUNCTION bury();

-- How many records of some places pass the filters: counted up to `most`, above it about.
CREATE FUNCTION passing(looked_in text[], dimension integer, filter jsonb, kinds smallint[], most integer) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    passing CONSTANT text := 'SELECT FROM memory.records WHERE place = ANY ($1) AND vector_dims(embedding) = $2'
        || ' AND (expire_time IS NULL OR expire_time > now())'
        || CASE WHEN filter IS NULL THEN '' ELSE ' AND metadata @> $3' END
        || CASE WHEN cardinality(kinds) = 0 THEN '' ELSE ' AND kind = ANY ($4)' END;
    counted bigint;
    explained json;
BEGIN
    EXECUTE format('SELECT count(*) FROM (%s LIMIT $5) found', passing)
        INTO counted USING looked_in, dimension, filter, kinds, most + 1;
    IF counted > most THEN
        EXECUTE 'EXPLAIN (FORMAT JSON) ' || passing INTO explained USING looked_in, dimension, filter, kinds;
        counted := greatest(counted, (explained -> 0 -> 'Plan' ->> 'Plan Rows')::float8);
    END IF;
    RETURN counted;
END $$;

-- Behind the wall between tenants (memory's 0002) records are written with their vectors.
DO $$
BEGIN
    IF memory.has_wall() THEN
        GRANT USAGE ON SCHEMA memory_vectors TO agentshell_memory;
        GRANT SELECT, INSERT, UPDATE, DELETE ON vectors, dead TO agentshell_memory;
    END IF;
END $$;
