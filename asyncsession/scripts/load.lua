-- Reads a session and puts off its idle timeout, at most once in a touch interval.
-- The timeout is never shortened, and never reaches past the absolute deadline.
--
-- KEYS[1]   the session
-- ARGV[1]   head: magic (2) and format (1) that the caller can read
-- ARGV[2]   idle timeout, ms; 0 to leave it as it is
-- ARGV[3]   touch interval, ms
--
-- Returns   {code, now, data}
--   OK         data: header and whole log
--   GONE       nothing there, destroyed, or past its deadline
--   MOVED      rotated away; data: the handle of the successor
--   UNREADABLE what is there is not of this format

local OK, GONE, MOVED, UNREADABLE = 1, 4, 5, 8
local HEAD, HEADER = 12, 40

local function number(text, at, size)
  local n = 0
  for i = at, at + size - 1 do n = n * 256 + string.byte(text, i) end
  return n
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local blob = redis.call('GET', KEYS[1])
if not blob then return {GONE, now, ''} end
if string.sub(blob, 1, 3) ~= ARGV[1] then return {UNREADABLE, now, ''} end
local kind = string.sub(blob, 4, 4)
if kind == 'M' then return {MOVED, now, string.sub(blob, HEAD + 1)} end
if kind == 'D' then return {GONE, now, ''} end
if kind ~= 'L' or #blob < HEADER then return {UNREADABLE, now, ''} end

local left = number(blob, 19, 6) - now
if left <= 0 then return {GONE, now, ''} end
local ttl = math.min(tonumber(ARGV[2]), left)
local current = redis.call('PTTL', KEYS[1])
if current >= 0 and ttl - current >= tonumber(ARGV[3]) and ttl > current then
  redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ttl))
end

local retired = number(blob, 37, 4)
if retired == 0 then return {OK, now, blob} end
return {OK, now, string.sub(blob, 1, HEADER) .. string.sub(blob, HEADER + retired + 1)}
