-- Goes before every script, after numbers.lua: reading blobs that may be damaged, or anybody's.

local HEAD, HEADER, TRAILER = 12, 40, 22
local FRAME = 6 + TRAILER -- bytes of one without tags and payload
local HANDLE = 64 -- bytes that one has at the most
-- No log is longer: four times the largest `max_bytes`, and the list of commit ids.
local LONGEST = '67174400' -- as text, since that is how it is sent

-- The value of a key; nil for none, '' for one that is too long to be ours.
local function read(key)
  local value = redis.call('GETRANGE', key, 0, LONGEST)
  if value == '' and redis.call('PTTL', key) == -2 then return nil end
  return #value > 67174400 and '' or value
end

-- How many bytes go before the first frame; nil if the header is damaged, or there is no frame.
local function before_log(blob)
  if #blob < HEADER then return nil end
  local retired = number(blob, 37, 4)
  if HEADER + retired + FRAME > #blob then return nil end
  return HEADER + retired
end

-- Where the frame after that at `at` begins, and how many tags this one has; nil if it is damaged.
local function next_frame(blob, at)
  if at + 5 > #blob then return nil end
  local length, tags = number(blob, at, 4), number(blob, at + 4, 2)
  if length < 2 + 8 * tags + TRAILER or at + 3 + length > #blob then return nil end
  return at + 4 + length, tags
end

local function is_whole(blob, log)
  local at = log + 1
  while at and at <= #blob do at = next_frame(blob, at) end
  return at ~= nil
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
