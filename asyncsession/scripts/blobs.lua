-- Goes before every script, after numbers.lua: reading blobs that may be damaged, or anybody's.
-- To make a function takes time in each run, as does each outer name that it uses; so there are
-- few, and what few runs need is made when it is needed.

local FRAME = 6 + TRAILER -- bytes of one without tags and payload
local HANDLE = 64 -- bytes that one has at the most

-- Writes a number in 2, 4 or 6 bytes.
local function bytes(n, size)
  local f, ef, def, cdef, bcdef = n % 2^8, n % 2^16, n % 2^24, n % 2^32, n % 2^40
  local c, d, e = (cdef - def) / 2^24, (def - ef) / 2^16, (ef - f) / 2^8
  if size == 2 then return char(e, f) end
  if size == 4 then return char(c, d, e, f) end
  return char((n - bcdef) / 2^40, (bcdef - cdef) / 2^32, c, d, e, f)
end

-- Makes what reads a log frame by frame: `log_end`, `next_frame`, `moved`.
local function frames()
  -- Where the frame after that at `at` begins, and how many tags this has; nil if it is damaged.
  local function next_frame(blob, at)
    local a, b, c, d, e, f = byte(blob, at, at + 5)
    if not f then return nil end
    local length, tags = ((a * 256 + b) * 256 + c) * 256 + d, e * 256 + f
    if length < 2 + 8 * tags + TRAILER or at + 3 + length > #blob then return nil end
    return at + 4 + length, tags
  end

  -- Where the last frame of a log ends, beginning with the frame at `at`; nil if it is damaged.
  -- What comes behind it is room for more: nothing but zeros, enough for a length that is zero,
  -- too.
  local function log_end(blob, at)
    while at <= #blob do
      local after = next_frame(blob, at)
      if not after then
        local room = #blob - at + 1
        return room >= 6 and sub(blob, at) == string.rep('\0', room) and at - 1 or nil
      end
      at = after
    end
    return at - 1
  end

  -- Where the base that `tip` names ends in a log that was compacted, and where that is to whoever
  -- reads the log only: its end (4), that of the snapshot (4), and `folded` (6); nil if it is not
  -- there. It has to be behind as many commits as the tip's holder knows of.
  local function moved(blob, log, tip, commits)
    local found = string.find(blob, tip, log + 1, true)
    local at, first, count = log + 1, nil, number(blob, 25, 6)
    while found and at and at < found do
      at, count = next_frame(blob, at), count + 1
      first = first or at
    end
    if not found or at ~= found + TRAILER or count ~= commits then return nil end
    return at - 1, bytes(at - 1 - log, 4) .. bytes(first - log - 1, 4) .. sub(blob, 25, 30)
  end

  return log_end, next_frame, moved
end

-- The session under a key, for somebody who knows its log up to a base. Which that is, `terms` say
-- from `from` on: how long (4), the stamp (6) and commit id (16) that it ends with, and how many
-- commits there had been (6). With shorter terms, or none, there is no base. The stamp is compared,
-- too: after a failover that lost others, a commit may be done once more, and the same id then
-- stands behind another history, with a later stamp.
--
-- Returns the blob, nil for none, '' for one too long to be ours; how many bytes of it go before
-- the first frame, nil where there is no sound session of this format; where the base ends, nil
-- where it is not found; how many bytes behind the header were left out; and where the base is by
-- now, if that is not its place. What is known of a large session is left out, and the ids of one
-- with so many commits that they may be many, unless the `whole` is asked for, or is given as the
-- `value`.
local function look(key, terms, from, whole, value)
  local length, tip, commits = 0, nil, nil
  if terms and #terms >= from then
    length, commits = number(terms, from, 4), number(terms, from + 26, 6)
    tip = sub(terms, from + 4, from + 25)
  end
  if length > 0 and not (whole or value) and (length >= LARGE or commits >= MANY) then
    local header = redis.call('GETRANGE', key, 0, HEADER - 1)
    if #header == HEADER and sub(header, 1, 4) == LIVE then
      local retired = number(header, 37, 4)
      local hidden = retired + length - TRAILER
      local rest = redis.call('GETRANGE', key, HEADER + hidden, LONGEST)
      if sub(rest, 1, TRAILER) == tip and HEADER + hidden + #rest <= LONGEST then
        return header .. rest, HEADER, HEADER + TRAILER, hidden
      end
      if retired > 0 then
        local blob = header .. redis.call('GETRANGE', key, HEADER + retired, LONGEST)
        local _, _, moved = frames()
        local base, place = moved(blob, HEADER, tip, commits)
        if base then return blob, HEADER, base, retired, place end
      end
    end
  end
  local blob = value or redis.call('GETRANGE', key, 0, LONGEST)
  if blob == '' and redis.call('PTTL', key) == -2 then return nil end
  if #blob > LONGEST then return '' end
  if #blob < HEADER + FRAME or sub(blob, 1, 4) ~= LIVE then return blob end
  local log = HEADER + number(blob, 37, 4)
  local base, place = log + length, nil
  if length > 0 and sub(blob, base - TRAILER + 1, base) == tip then return blob, log, base, 0 end
  if log + FRAME > #blob or number(blob, log + 1, 4) == 0 then return blob end
  if length == 0 then return blob, log, nil, 0 end
  local _, _, moved = frames()
  base, place = moved(blob, log, tip, commits)
  return blob, log, base, 0, place
end

-- Tries a write that may be left out, and is by a server that has no memory, disk or replicas to
-- write to. Returns whether it was done, and any other error.
local function attempt(...)
  local reply = redis.pcall(...)
  local err = type(reply) == 'table' and reply.err
  if not err then return true end
  local code = string.match(err, '^%u+')
  if code == 'OOM' or code == 'MISCONF' or code == 'NOREPLICAS' then return false end
  return false, reply
end
