-- What windows and caches need to know.

-- Another one for a session that begins again after it was forgotten: nothing made of the old one is written to it.
ALTER TABLE sessions ADD COLUMN incarnation uuid NOT NULL DEFAULT gen_random_uuid();
-- How far the next summary goes, as whoever asked for it first has said: all who ask for it ask for the same.
ALTER TABLE sessions ADD COLUMN summary_position bigint NOT NULL DEFAULT 0;

-- Counts the changes of a place, each in the transaction that makes it: an entry of an older generation is of no use,
-- wherever it is kept. A count outlives what its place has held by a day, which no entry of a cache lives to see.
CREATE TABLE generations (
    place       text COLLATE "C" PRIMARY KEY,  -- As in records.
    tenant_id   text COLLATE "C" NOT NULL GENERATED ALWAYS AS (split_part(place, ' ', 2)) STORED,
    generation  bigint           NOT NULL,
    update_time timestamptz      NOT NULL DEFAULT now()
);
CREATE INDEX generations_by_age ON generations (update_time);
SELECT wall('generations');
