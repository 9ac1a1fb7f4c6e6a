-- Goes before every script, after numbers.lua: reading blobs that may be damaged, or anybody's.

local sub = string.sub
local HEAD, HEADER, TRAILER = 12, 40, 22
local FRAME = 6 + TRAILER -- bytes of one without tags and payload
local HANDLE = 64 -- bytes that one has at the most
local LARGE = 4096 -- bytes from which on it saves time to read and to write no more than is needed
local MANY = 512 -- commits
local NO_FRAME = '\0\0\0\0\0\0'
-- No blob is longer: four times the largest `max_bytes`, the list of commit ids, and room behind.
local LONGEST = '71372800' -- as text, since that is how it is sent

-- The value of a key; nil for none, '' for one that is too long to be ours.
local function read(key)
  local value = redis.call('GETRANGE', key, 0, LONGEST)
  if value == '' and redis.call('PTTL', key) == -2 then return nil end
  return #value > tonumber(LONGEST) and '' or value
end

-- How many bytes go before the first frame; nil if the header is damaged, or there is no frame.
local function before_log(blob)
  if #blob < HEADER then return nil end
  local retired = number(blob, 37, 4)
  local log = HEADER + retired
  if log + FRAME > #blob or number(blob, log + 1, 4) == 0 then return nil end
  return log
end

-- Where the frame after that at `at` begins, and how many tags this one has; nil if it is damaged.
local function next_frame(blob, at)
  if at + 5 > #blob then return nil end
  local length, tags = number(blob, at, 4), number(blob, at + 4, 2)
  if length < 2 + 8 * tags + TRAILER or at + 3 + length > #blob then return nil end
  return at + 4 + length, tags
end

-- Where the last frame of a log ends, beginning with the frame at `at`; nil if the log is damaged.
-- What comes behind it is room for more: nothing but zeros, enough for a length that is zero, too.
local function log_end(blob, at)
  while at and at <= #blob do
    if sub(blob, at, at + 5) == NO_FRAME then
      return sub(blob, at) == string.rep('\0', #blob - at + 1) and at - 1 or nil
    end
    at = next_frame(blob, at)
  end
  return at and at - 1
end

-- Where the base that `tip` names ends in a log that was compacted, and where that is to whoever reads
-- the log only: its end (4), that of the snapshot (4), and `folded` (6); nil if it is not there.
local function moved(blob, log, tip)
  local found = string.find(blob, sub(tip, 1, TRAILER), log + 1, true)
  local at, first, count = log + 1, nil, number(blob, 25, 6)
  while found and at and at < found do
    at, count = next_frame(blob, at), count + 1
    first = first or at
  end
  if not found or at ~= found + TRAILER or count ~= number(tip, TRAILER + 1, 6) then return nil end
  return at - 1, bytes(at - 1 - log, 4) .. bytes(first - log - 1, 4) .. sub(blob, 25, 30)
end

-- The session under a key, for somebody who knows its log up to a base: `length` bytes of it, which
-- end with the stamp and commit id that `tip` begins with; then comes how many commits there had been.
-- The stamp is compared, too: after a failover that lost others, a commit may be done once more, and
-- the same id then stands behind another history, with a later stamp. Returns the blob; how many bytes of it go before the first frame, nil where there is no sound session;
-- where the base ends, nil where it is not found; how many bytes behind the header were left out;
-- and where the base is by now, if that is not its place. What is known of a large session is left
-- out, and the ids of one with so many commits that they may be many, unless the `whole` is asked for.
local function look(key, length, tip, whole)
  if length > 0 and not whole and (length >= LARGE or number(tip, TRAILER + 1, 6) >= MANY) then
    local header = redis.call('GETRANGE', key, 0, HEADER - 1)
    if #header == HEADER and sub(header, 4, 4) == 'L' then
      local retired = number(header, 37, 4)
      local hidden = retired + length - TRAILER
      local rest = redis.call('GETRANGE', key, HEADER + hidden, LONGEST)
      if sub(rest, 1, TRAILER) == sub(tip, 1, TRAILER) and HEADER + hidden + #rest <= tonumber(LONGEST) then
        return header .. rest, HEADER, HEADER + TRAILER, hidden
      end
      if retired > 0 then
        local blob = header .. redis.call('GETRANGE', key, HEADER + retired, LONGEST)
        local base, place = moved(blob, HEADER, tip)
        if base then return blob, HEADER, base, retired, place end
      end
    end
  end
  local blob = read(key)
  local log = blob and sub(blob, 4, 4) == 'L' and before_log(blob) or nil
  if not log or length == 0 then return blob, log, nil, 0 end
  local base, place = log + length, nil
  if sub(blob, base - TRAILER + 1, base) ~= sub(tip, 1, TRAILER) then base, place = moved(blob, log, tip) end
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
