-- Puts off a session's idle timeout; never shortens it, never reaches past the absolute deadline.
-- Notes that the session was seen: the stamp of its last frame moves forward.
--
-- KEYS[1]   the session
-- ARGV[1]   head: magic (2), format (1), kind (1) and incarnation (8) of the live session
-- ARGV[2]   idle timeout, ms
--
-- Returns   {code, now, data}
--   OK         done; data: what the last frame's stamp (6) and id (16) were if that was noted there,
--              else empty
--   GONE       destroyed, expired, or another session
--   MOVED      rotated away; data: the handle of the successor
--   UNREADABLE what is there is not of this format

local OK, GONE, MOVED, UNREADABLE = 1, 4, 5, 8

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local head = ARGV[1]
local blob, log = look(KEYS[1])
if not blob then return {GONE, now, ''} end
if sub(blob, 1, 3) ~= sub(head, 1, 3) or #blob < HEAD then
  return {UNREADABLE, now, ''}
end
if sub(blob, 5, HEAD) ~= sub(head, 5, HEAD) then return {GONE, now, ''} end
local kind = sub(blob, 4, 4)
if kind == 'M' then return {MOVED, now, sub(blob, HEAD + 1, HEAD + HANDLE)} end
if kind == 'D' and #blob == HEAD then return {GONE, now, ''} end
local log_end = frames()
local last = log and log_end(blob, log + 1)
if not last then return {UNREADABLE, now, ''} end

local left = number(blob, 19, 6) - now
if left <= 0 then return {GONE, now, ''} end
local ttl = math.min(tonumber(ARGV[2]), left)
if ttl > redis.call('PTTL', KEYS[1]) then
  redis.call('PEXPIRE', KEYS[1], ttl)
end
local stamp = last - TRAILER + 1
local noted = false
if now > number(blob, stamp, 6) then
  local refused
  noted, refused = attempt('SETRANGE', KEYS[1], stamp - 1, bytes(now, 6))
  if refused then return refused end
end
return {OK, now, noted and sub(blob, stamp, last) or ''}
