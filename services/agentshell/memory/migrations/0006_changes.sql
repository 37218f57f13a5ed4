-- Changes, appends and the newest messages as functions: one way to Postgres each, where each of their statements was one.

-- Answered from the catalogue's caches.
CREATE OR REPLACE FUNCTION has_wall() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT coalesce(pg_has_role(to_regrole('agentshell_memory'), 'MEMBER'), false)
$$;

-- As in 0002; for NULL, where nobody calls, there is no wall.
CREATE OR REPLACE FUNCTION stand(tenant text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF tenant IS NOT NULL THEN
        PERFORM set_config('agentshell.tenant_id', tenant, true);
        IF memory.has_wall() THEN
            PERFORM set_config('role', 'agentshell_memory', true);
        END IF;
    END IF;
END $$;

-- Begins a change, and goes behind the wall for whoever calls. What changes a place holds it, and its tenant, with others;
-- what forgets holds alone what it forgets: a change that is under way at the same time is wholly before it, and gone, or
-- wholly after it. Always the tenant first.
CREATE FUNCTION begin_change(with_others text[], alone text[], caller text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(name, 1)) FROM unnest(with_others) AS held (name);
    PERFORM pg_advisory_xact_lock(hashtextextended(name, 1)) FROM unnest(alone) AS held (name);
    PERFORM memory.stand(caller);
END $$;

-- Ends a change: brings the places to their next generations. The last statement of its transaction, and in one order for
-- all: what it locks is locked for no longer than a commit.
CREATE FUNCTION end_change(places text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.generations AS counted (place, generation)
    SELECT place, 1 FROM unnest(places) AS changed (place) ORDER BY place
    ON CONFLICT (place) DO UPDATE SET generation = counted.generation + 1, update_time = now();
END $$;

-- Whether a request is the first of its id within 24 hours; where it is not, the first one's answer: NULL where that was
-- another request. Whoever repeats an id while the first is under way waits here for its end.
CREATE FUNCTION claim(tenant text, id text, of_digest bytea, OUT is_first boolean, OUT first_answer bytea)
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.requests AS request (tenant_id, request_id, digest) VALUES (tenant, id, of_digest)
    ON CONFLICT (tenant_id, request_id) DO UPDATE SET digest = excluded.digest, create_time = now()
    WHERE request.create_time < now() - interval '24 hours';
    is_first := FOUND;
    IF NOT is_first THEN
        SELECT answer INTO first_answer FROM memory.requests
        WHERE tenant_id = tenant AND request_id = id AND digest = of_digest;
    END IF;
END $$;

-- Keeps the answer to a request, in the transaction that has claimed it.
CREATE FUNCTION keep_answer(tenant text, id text, made bytea) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE memory.requests SET answer = made WHERE tenant_id = tenant AND request_id = id;
END $$;

-- A number as protobuf writes it.
CREATE FUNCTION varint(number bigint) RETURNS bytea LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    written bytea := '';
BEGIN
    WHILE number > 127 LOOP
        written := written || set_byte('\x00', 0, (number & 127)::integer | 128);
        number := number >> 7;
    END LOOP;
    RETURN written || set_byte('\x00', 0, number::integer);
END $$;

-- Adds messages to the end of a session's history, in order, whoever else appends; it is the conversation of the first user
-- that is not empty. Returns the kfm.memory.v1.AppendMessagesResponse of the request, as `claim` does.
CREATE FUNCTION append(
    tenant text, session text, of_user text, messages bytea[], id text, of_digest bytea, caller text, OUT response bytea
) LANGUAGE plpgsql AS $$
DECLARE
    place CONSTANT text := 'session/' || session || ' ' || tenant;
    is_first boolean;
    last bigint;
BEGIN
    PERFORM memory.begin_change(ARRAY[tenant, place], '{}', caller);
    SELECT * INTO is_first, response FROM memory.claim(tenant, id, of_digest);
    IF is_first THEN
        -- Locks the session's row until the transaction ends: one appends at a time.
        INSERT INTO memory.sessions AS known (tenant_id, session_id, message_count, user_id)
        VALUES (tenant, session, cardinality(messages), of_user)
        ON CONFLICT (tenant_id, session_id) DO UPDATE SET message_count = known.message_count + excluded.message_count,
            user_id = CASE known.user_id WHEN '' THEN excluded.user_id ELSE known.user_id END
        RETURNING message_count INTO last;
        INSERT INTO memory.messages (tenant_id, session_id, position, message)
        SELECT tenant, session, last - cardinality(messages) + number, message
        FROM unnest(messages) WITH ORDINALITY AS appended (message, number);
        response := '\x08' || memory.varint(last);
        PERFORM memory.keep_answer(tenant, id, response);
    END IF;
    PERFORM memory.end_change(ARRAY[place]);
END $$;

-- The newest messages before a position, oldest first, and whether there are older ones: as many as fit, at least one where
-- there is one. Sizes are known without reading the messages, so a page of pictures costs no more than it brings.
CREATE FUNCTION newest(tenant text, session text, before bigint, most bigint, most_bytes bigint, caller text)
RETURNS TABLE (message bytea, "position" bigint, older boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM memory.stand(caller);
    RETURN QUERY SELECT message, position, older FROM (
        SELECT message, position, row_number() OVER newest AS number,
            sum(octet_length(message)) OVER newest AS total_bytes, lead(position) OVER newest IS NOT NULL AS older
        FROM (
            SELECT message, position FROM memory.messages
            WHERE tenant_id = tenant AND session_id = session AND position < before
            ORDER BY position DESC LIMIT most + 1
        ) candidates
        WINDOW newest AS (ORDER BY position DESC)
    ) sized
    WHERE number = 1 OR (number <= most AND total_bytes <= most_bytes)
    ORDER BY position;
END $$;
