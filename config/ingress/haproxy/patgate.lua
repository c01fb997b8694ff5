-- Asks patgate for a verdict on a request of HAProxy (action `http-request lua.patgate`; haproxy.cfg).
--
-- An answer other than 200 goes to the client as it is. With a 200, the request passes with patgate's identity headers
-- in place of the client's.

-- The identity headers of patgate.yaml (`identity`). Each one replaces what the client sent: it is set, or removed if
-- patgate has no value for it.
local IDENTITY = {
    "X-Auth-User", "X-Auth-Email", "X-Auth-Org", "X-Auth-Role", "X-Auth-Scopes", "X-Auth-Token", "X-Auth-Token-Name",
    "X-Auth-Kind", "X-Request-Id",
}

-- Headers about the client's connection and body. The call has a connection of its own, and no body.
local NOT_SENT = {
    ["host"] = true, ["connection"] = true, ["upgrade"] = true, ["keep-alive"] = true, ["content-length"] = true,
    ["transfer-encoding"] = true, ["expect"] = true, ["te"] = true, ["trailer"] = true,
}

-- Headers of a refusal that the client does not get.
local NOT_PASSED = {
    ["connection"] = true, ["keep-alive"] = true, ["content-length"] = true, ["transfer-encoding"] = true,
}

-- The `listen patgate` of haproxy.cfg.
local ADDRESS = "abns@patgate"

-- Milliseconds: a little more than `timeout connect` and `timeout server` there, which end a call first.
local PATIENCE = 1900

-- Header lines of a call. HAProxy 2.6 crashes if core.httpclient gets as many as `tune.http.maxhdr`, so this must be at
-- least ten fewer. patgate itself refuses more than a hundred (`limits.headers`).
local MOST_LINES = 116

local TOO_MANY = '{"type":"about:blank","title":"Request header too large","status":431,' ..
    '"reason":"head_too_large"}'

local UNAVAILABLE = '{"type":"about:blank","title":"Authorization is unavailable","status":503,' ..
    '"reason":"unavailable"}'

-- The values of a header in their order. HAProxy's tables of values begin at 0.
local function each(values)
    local list = {}
    for position = 0, #values do
        if values[position] ~= nil then
            table.insert(list, values[position])
        end
    end
    return ipairs(list)
end

local function refuse(txn, status, headers, body)
    local reply = txn:reply{ status = status }
    for name, values in pairs(headers) do
        if not NOT_PASSED[name] then
            for _, value in each(values) do
                reply:add_header(name, value)
            end
        end
    end
    if txn.f:method() ~= "HEAD" then
        reply:set_body(body or "")
    end
    txn:done(reply)
end

local function unavailable(txn)
    refuse(txn, 503, {
        ["content-type"] = { "application/problem+json" }, ["cache-control"] = { "no-store" }, ["retry-after"] = { "1" },
    }, UNAVAILABLE)
end

core.register_action("patgate", { "http-req" }, function(txn)
    -- All other headers of the client, unchanged: patgate must see every place where a token may be, and the headers
    -- that name a second target (Destination, X-Amz-Copy-Source).
    local headers, lines = {}, 0
    for name, values in pairs(txn.http:req_get_headers()) do
        if not NOT_SENT[name] then
            headers[name] = {}
            for _, value in each(values) do
                table.insert(headers[name], value)
                lines = lines + 1
            end
        end
    end
    if lines > MOST_LINES then
        return refuse(txn, 431, {
            ["content-type"] = { "application/problem+json" }, ["cache-control"] = { "no-store" },
        }, TOO_MANY)
    end
    -- The whole field: `req_hdr` would be what stands behind its last comma.
    local host = txn.f:req_fhdr("host") or ""
    headers["host"] = { host }
    headers["x-forwarded-host"] = { host }
    headers["x-forwarded-method"] = { txn.f:method() }
    -- `pathq` is the target as the client sent it; `path` has no query, and `url_dec` would be another reading of it.
    headers["x-forwarded-uri"] = { txn.f:pathq() }
    headers["x-forwarded-for"] = { txn.f:src() }
    headers["x-forwarded-proto"] = { txn.f:ssl_fc() == 1 and "https" or "http" }

    local answer = core.httpclient():get{
        url = "http://patgate/haproxy", dst = ADDRESS, headers = headers, timeout = PATIENCE,
    }
    if not answer or not answer.status or not answer.headers then
        return unavailable(txn)
    end
    if answer.status ~= 200 then
        -- An answer without a request id is HAProxy's own: patgate is down or does not answer. 1xx, 2xx and 3xx never
        -- come from patgate.
        if answer.status < 400 or not answer.headers["x-request-id"] then
            return unavailable(txn)
        end
        return refuse(txn, answer.status, answer.headers, answer.body)
    end
    for _, name in ipairs(IDENTITY) do
        local values = answer.headers[name:lower()]
        local value = values and (values[0] or values[1])
        if value and value ~= "" then
            txn.http:req_set_header(name, value)
        else
            txn.http:req_del_header(name)
        end
    end
    txn:set_var("txn.patgate_allowed", true)
end, 0)
