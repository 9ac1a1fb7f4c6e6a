-- Ends a session and leaves a tombstone, so that no request still under way brings it back.
--
-- KEYS[1]   the session
-- ARGV[1]   tombstone: magic (2), format (1), kind (1), incarnation (8); with the magic alone,
--           whatever session is there is ended, and nothing is left where there was none
-- ARGV[2]   how long the tombstone stays, ms
--
-- Returns   {code, now, data}
--   OK         done
--   GONE       it was gone already, or another session is there
--   MOVED      rotated away; data: the handle of the successor
--   UNREADABLE what is there is no session

local OK, GONE, MOVED, UNREADABLE = 1, 4, 5, 8

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local tombstone = ARGV[1]
local known = #tombstone == HEAD
local blob = redis.call('GETRANGE', KEYS[1], 0, 127)
if blob == '' then
  if known then redis.call('SET', KEYS[1], tombstone, 'PX', ARGV[2]) end
  return {GONE, now, ''}
end
if #blob < HEAD or sub(blob, 1, 2) ~= sub(tombstone, 1, 2) then
  return {UNREADABLE, now, ''}
end
if known and sub(blob, 5, HEAD) ~= sub(tombstone, 5, HEAD) then return {GONE, now, ''} end
local kind = sub(blob, 4, 4)
if kind == 'M' then return {MOVED, now, sub(blob, HEAD + 1, HEAD + HANDLE)} end
if kind == 'D' then
  redis.call('PEXPIRE', KEYS[1], ARGV[2]) -- a write of this connection's, for WAIT to cover
  return {GONE, now, ''}
end
local mark = sub(blob, 1, 3) .. 'D' .. sub(blob, 5, HEAD)
redis.call('SET', KEYS[1], mark, 'PX', ARGV[2])
return {OK, now, ''}
