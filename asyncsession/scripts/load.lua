-- Reads a session as far as its reader does not know it yet, puts off its idle timeout and notes
-- that it was seen, each at most once in a touch interval. The timeout is never shortened, and
-- never reaches past the absolute deadline. When a session was seen is the stamp of its last frame,
-- which moves forward for that.
--
-- KEYS[1]   the session
-- ARGV[1]   terms, big-endian:
--             idle timeout (6), ms; 0 to look only, and to write nothing
--             ms that the caller takes this clock to show (6), for a reply without it; 0 for one
--             with it
--           and, unless the caller knows nothing of the log:
--             base length (4): bytes of log that it knows
--             base tip (28): stamp (6) and id (16) of the last frame it knows, and how many commits
--             there had been (6)
--
-- Returns   {code, now, data}, or data alone for OK where nothing was due to be put off
--   OK         data: header and whole log; where the base is found, '+', the stamp (6) of the last
--              frame, and the frames after the base; where it is not at its place any more, since
--              the log was compacted, '-' instead of '+', and where it is (14 bytes, see `moved` in
--              blobs.lua) between stamp and frames
--   GONE       nothing there, destroyed, or past its deadline
--   MOVED      rotated away; data: the handle of the successor
--   UNREADABLE what is there is not of this format

local OK, GONE, MOVED, UNREADABLE = 1, 4, 5, 8
local FORMAT = sub(LIVE, 1, 3)

local blob, log, base, hidden, place = look(key, terms, 13, false, value)

if not log then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if not blob then return {GONE, now, ''} end
  local kind = sub(blob, 4, 4)
  local is_ours = sub(blob, 1, 2) == sub(FORMAT, 1, 2)
  if is_ours and kind == 'D' and #blob == HEAD then return {GONE, now, ''} end -- of any format
  if sub(blob, 1, 3) ~= FORMAT or kind ~= 'M' then return {UNREADABLE, now, ''} end
  return {MOVED, now, sub(blob, HEAD + 1, HEAD + HANDLE)}
end

local whole = base
if base ~= #blob then
  local log_end = frames()
  whole = log_end(blob, (base or log) + 1)
end
local last = whole or #blob -- whoever reads a damaged log says so
local stamp = last - TRAILER + 1
local seen, deadline = number(blob, stamp, 6), number(blob, 19, 6)

local current = redis.call('PTTL', key)
local is_due, now = true, nil
if known > 0 and known < deadline and known - seen < interval then
  local due = math.min(idle, deadline - known) - current
  is_due = current >= 0 and due >= interval and due > 0
end
if is_due then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
  if now >= deadline then return {GONE, now, ''} end
  local ttl = math.min(idle, deadline - now)
  if current >= 0 and ttl - current >= interval and ttl > current then
    local _, refused = attempt('PEXPIRE', key, ttl)
    if refused then return refused end
  end
  if ttl > 0 and now - seen >= interval and whole then
    local done, refused = attempt('SETRANGE', key, hidden + stamp - 1, bytes(now, 6))
    if refused then return refused end
    if done then blob = sub(blob, 1, stamp - 1) .. bytes(now, 6) .. sub(blob, stamp + 6) end
  end
end

local data
if base then
  local mark = place and '-' or '+'
  data = mark .. sub(blob, stamp, stamp + 5) .. (place or '') .. sub(blob, base + 1, last)
elseif log == HEADER then
  data = last == #blob and blob or sub(blob, 1, last)
else
  data = sub(blob, 1, HEADER) .. sub(blob, log + 1, last)
end
return is_due and {OK, now, data} or data
