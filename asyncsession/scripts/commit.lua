-- Appends one frame to a session's log, or creates the log, or moves it to a new key on the way.
-- It writes at the end, after all that can fail: Redis does not roll back. A large session has room
-- for more frames behind its log, so that one does not cost as much as the whole session.
-- Or several commits of one session: carried out one after the other, as by as many calls, and written
-- all at once. Of those none folds the log, and none moves the session.
--
-- KEYS[1]   the session
-- KEYS[2]   its new key, for a rotation (left out otherwise); in the same Cluster slot
-- ARGV[1]   terms, big-endian:
--             commit id (16): random bytes
--             head (12): magic (2), format (1), kind (1) and incarnation (8) of the live session
--             issued (6): ms on the server's clock as the committer knew it when it first sent this
--             idle timeout (6), ms
--             absolute timeout (6), ms; used when creating
--             size limit (4) of header and log, bytes
--           and, left out to create:
--             base length (4): bytes of log that the committer has seen
--             base tip (28): stamp (6) and id (16) of the last frame it has seen, and how many
--             commits there had been (6)
--             guards (the rest): key tags (8 bytes each) nobody may have changed since the base;
--             '*' for any key
-- ARGV[2]   frame, without its stamp and commit id
-- ARGV[3]   snapshot of the base: the payload of the frame that replaces it; empty for none. This
--           and what follows is left out by most commits
-- ARGV[4]   the handle that goes with the new key, for a rotation
-- Several commits have no snapshots: terms and frame of the first, of the second, and so on.
--
-- Returns   one string: now (6), commit id (16), code (1), base found (1), data. Base found: 1, or
--           0 if it is not; 2 if it is not at its place any more, since the log was compacted: then
--           data begins with where it is (14 bytes, see `moved` in blobs.lua). For several commits
--           an array of such strings, in their order
--   OK         data: frames between the base and this one; without the base, header and whole log
--   APPLIED    it had been done before; data as for OK, with this commit's frame in it
--   CONFLICT   a guarded key has changed; data: frames after the base, or header and whole log
--   GONE       destroyed, expired, or another session
--   MOVED      data: the handle of the successor
--   TOO_LARGE  data: the size in bytes that was asked for
--   LATE       not done by this copy: outside its window, or so old that its id may be forgotten
--   UNREADABLE what is there is not of this format

-- Returns zeros to go behind a log of `size` bytes: a sixteenth at the most, and no more than
-- jemalloc would hand out anyway, which rounds up to quarters of powers of two, unless that is next
-- to nothing.
local function spare_room(size)
  if size < LARGE then return '' end
  local ends, least = 16, 128 -- what the server's strings begin and end with; a frame
  local _, exponent = math.frexp(size + ends + least)
  local quarter = 2 ^ (exponent - 3)
  local full = math.ceil((size + ends + least) / quarter) * quarter - ends
  return string.rep('\0', math.min(full - size, math.floor(size / 16)))
end

-- Returns base found, and what its committer has not seen.
local function unseen(blob, log, base, last, place)
  if base then return place and 2 or 1, (place or '') .. sub(blob, base + 1, last) end
  return 0, sub(blob, 1, HEADER) .. sub(blob, log + 1, last)
end

-- Puts frames behind a log that ends at `last`, where they fit into the room there, or writes it anew.
local function write(key, new_key, blob, last, hidden, frames, ttl, folded, created)
  local room = #blob - last - #frames
  if not folded and not new_key and (room == 0 or room >= 6) then
    redis.call('PEXPIRE', key, ttl) -- first, in case that there is no right to it
    redis.call('SETRANGE', key, hidden + last, frames)
    return
  end
  local before = folded
  if not before then
    before = hidden > 0 and look(key) or blob
    if #before > hidden + last then before = sub(before, 1, hidden + last) end
  end
  local room_after = created and '' or spare_room(#before + #frames)
  redis.call('SET', new_key or key, before .. frames .. room_after, 'PX', ttl)
end

-- Carries out a commit at the time `now`, which is `mark` as bytes. Returns code, base found, data.
-- What it finds and would write stays in `batch`, if there is one, for the commits after it.
local function commit(now, mark, key, new_key, terms, own, snapshot, successor, batch)
  local OK, APPLIED, CONFLICT, GONE, MOVED, TOO_LARGE, LATE, UNREADABLE = 1, 2, 3, 4, 5, 6, 7, 8
  local SLACK = 1000 -- ms that a committer's idea of this clock may run ahead of it
  local WINDOW = 15000 -- ms: copies of this request that come later after it was issued do nothing
  local HORIZON = 30000 -- ms: how long folded commit ids are remembered
  local KEPT_IDS = 1024 -- folded commit ids that are remembered at the most
  local GRACE = 120000 -- ms that the old key says after a rotation where the session is now
  local TERMS = 50 -- bytes of terms that every commit has
  local BASE = 32 -- bytes of the base behind them

  local id, head = sub(terms, 1, 16), sub(terms, 17, 28)
  local issued, idle = number(terms, 29, 6), number(terms, 35, 6)
  local creating, guards = #terms == TERMS, sub(terms, 83)
  local outside = issued > now + SLACK or now > issued + WINDOW

  local all, known = snapshot ~= '' or new_key, nil
  local blob, log, base, hidden, place, last
  if not batch then
    blob, log, base, hidden, place = look(key, terms, TERMS + 1, all)
  else
    known = sub(terms, TERMS + 1, TERMS + BASE)
    if batch.known == known then
      blob, log, base, hidden, place = batch.blob, batch.log, batch.base, batch.hidden, batch.place
      last = batch.last
    elseif not batch.known or batch.blob then
      blob, log, base, hidden, place = look(key, terms, TERMS + 1, batch.all, batch.blob)
    end
  end
  local tombstone = new_key and sub(head, 1, 3) .. 'M' .. sub(head, 5) .. successor
  local rotated = new_key and blob == tombstone
  if rotated then
    key = new_key
    blob, log, base, hidden, place = look(key, terms, TERMS + 1, all)
  end
  if batch and batch.known ~= known then
    batch.known, batch.blob, batch.log, batch.base = known, blob, log, base
    batch.hidden, batch.place = hidden, place
  end

  if not blob then
    if not creating then return GONE end
    if outside then return LATE end
    local deadline = bytes(now + number(terms, 41, 6), 6)
    blob, log, hidden = head .. mark .. deadline .. string.rep('\0', 16), HEADER, 0
  elseif sub(blob, 1, HEAD) ~= head then
    if sub(blob, 1, 3) ~= sub(head, 1, 3) or #blob < HEAD then return UNREADABLE end
    if sub(blob, 5, HEAD) ~= sub(head, 5, HEAD) then return GONE end
    local kind = sub(blob, 4, 4)
    if kind == 'M' then return MOVED, 0, sub(blob, HEAD + 1, HEAD + HANDLE) end
    if kind == 'D' and #blob == HEAD then return GONE end
    return UNREADABLE
  elseif not log then
    return UNREADABLE
  end

  if base == #blob then last = base end
  if not last then
    local log_end = frames()
    last = log_end(blob, (base or log) + 1)
    if batch then batch.last = last end
  end

  local forgotten, left = number(blob, 31, 6), number(blob, 19, 6) - now
  -- What `look` leaves out does not hold it: a committer whose base may have its own frame in it,
  -- since a load told of that, which does not tell the listed ids, sends a snapshot; then nothing
  -- is left out.
  if string.find(blob, id, 1, true) then
    -- Its expiry is set again so that this connection has written, too: WAIT looks no further back.
    local ttl = math.min(idle, left)
    if batch then
      batch.ttl = math.max(batch.ttl or redis.call('PTTL', key), ttl)
    else
      redis.call('PEXPIRE', key, math.max(redis.call('PTTL', key), ttl))
    end
    return APPLIED, unseen(blob, log, base, last, place)
  end
  if outside or rotated or issued <= forgotten or (creating and #blob > log) then return LATE end
  -- What the committer has not seen may be damaged; nobody could read what was put behind that.
  if not last then return UNREADABLE end

  if guards ~= '' then
    if not base or (guards == '*' and last > base) then
      return CONFLICT, unseen(blob, log, base, last, place)
    end
    if last > base then
      local _, next_frame = frames()
      local guarded, at = {}, base + 1
      for guard = 1, #guards - 7, 8 do guarded[sub(guards, guard, guard + 7)] = true end
      while at <= last do
        local after, tags = next_frame(blob, at)
        for tag = at + 6, at + 5 + 8 * tags, 8 do
          if guarded[sub(blob, tag, tag + 7)] then
            return CONFLICT, unseen(blob, log, base, last, place)
          end
        end
        at = after
      end
    end
  end

  local frame = own .. (issued > now and bytes(issued, 6) or mark) .. id
  local size, limit = hidden + last + #frame, number(terms, 47, 4)
  if size > limit then size = size - number(blob, 37, 4) end -- the list of ids doesn't count
  local folded
  if snapshot ~= '' and base then
    local _, next_frame = frames()
    local ids, count, at = {sub(blob, HEADER + 1, log)}, 0, log + 1
    while at <= base do
      at = next_frame(blob, at) or #blob + 2
      if at > base + 1 then return UNREADABLE end
      count = count + 1
      if at <= base then ids[#ids + 1] = sub(blob, at - TRAILER, at - 1) end
    end
    local history = table.concat(ids)
    local keep, spare = 1, #history - TRAILER * KEPT_IDS
    while keep <= #history and (keep <= spare or number(history, keep, 6) < now - HORIZON) do
      forgotten = math.max(forgotten, math.min(number(history, keep, 6), now + SLACK))
      keep = keep + TRAILER
    end
    history = sub(history, keep)
    local body = bytes(0, 2) .. snapshot .. sub(blob, base - TRAILER + 1, base)
    local commits = bytes(number(blob, 25, 6) + count - 1, 6)
    local header = sub(blob, 1, 24) .. commits .. bytes(forgotten, 6) .. bytes(#history, 4)
    folded = header .. history .. bytes(#body, 4) .. body .. sub(blob, base + 1, last)
    size = #folded - #history + #frame
  end

  if size > limit then return TOO_LARGE, 0, tostring(size) end
  if left <= 0 then return GONE end

  local ttl = math.min(idle, left)
  if batch then
    if not batch.stored then batch.stored, batch.ends, batch.created = blob, last, creating end
    batch.frames, batch.ttl, batch.hidden, batch.log = batch.frames .. frame, ttl, hidden, log
    batch.blob = sub(blob, 1, last) .. frame
    batch.last = #batch.blob
  else
    write(key, new_key, blob, last, hidden, frame, ttl, folded, creating)
    if new_key then redis.call('SET', key, tombstone, 'PX', GRACE) end
  end
  if base == last and not place then return OK, 1, '' end
  return OK, unseen(blob, log, base, last, place)
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mark, key = bytes(now, 6), KEYS[1]

if #ARGV < 4 or KEYS[2] then
  local terms, own, snapshot, successor = ARGV[1], ARGV[2], ARGV[3] or '', ARGV[4]
  local code, found, data = commit(now, mark, key, KEYS[2], terms, own, snapshot, successor)
  return mark .. sub(terms, 1, 16) .. char(code, found or 0) .. (data or '')
end

-- Where they know different bases, the session is looked at as a whole, and as it becomes by and by.
local batch, replies = {frames = ''}, {}
for at = 3, #ARGV, 2 do
  batch.all = batch.all or sub(ARGV[at], 51, 82) ~= sub(ARGV[1], 51, 82)
end
for at = 1, #ARGV, 2 do
  local terms, own = ARGV[at], ARGV[at + 1]
  local code, found, data = commit(now, mark, key, nil, terms, own, '', nil, batch)
  replies[#replies + 1] = mark .. sub(terms, 1, 16) .. char(code, found or 0) .. (data or '')
end
if batch.stored then
  local stored, ends, ttl = batch.stored, batch.ends, batch.ttl
  write(key, nil, stored, ends, batch.hidden, batch.frames, ttl, nil, batch.created)
elseif batch.ttl then
  redis.call('PEXPIRE', key, batch.ttl)
end
return replies
