-- Goes into the load script before blobs.lua, so that most loads need none of it: answers those of
-- a log that is known to its end, where nothing is due to be put off. What it doesn't answer is
-- left to load.lua, which says the same in all cases.

local FEW = '\0\0\0\0\0' -- what the number of commits begins with where it is below 256
local TOUCHES, LONGEST_TOUCH = 10, 60000 -- an interval: a tenth of the timeout, and ms at the most

local key, terms = KEYS[1], ARGV[1]
local idle, known = number(terms, 1, 6), number(terms, 7, 6)
local interval = math.min(math.floor(idle / TOUCHES), LONGEST_TOUCH)
local length = #terms > 12 and number(terms, 13, 4) or 0
local value -- the whole of it, if it is read here
if length > 0 and length < LARGE and known > 0 and sub(terms, 39, 43) == FEW then
  value = redis.call('GETRANGE', key, 0, LONGEST)
  local tip = sub(terms, 17, 38)
  if sub(value, -TRAILER) == tip and sub(value, 1, 4) == LIVE
    and #value == HEADER + number(value, 37, 4) + length then
    local left = number(value, 19, 6) - known
    local due = math.min(idle, left) - redis.call('PTTL', key)
    if left > 0 and due < interval and known - number(tip, 1, 6) < interval then
      return '+' .. sub(tip, 1, 6)
    end
  end
end
