"""What `sandbox --help` says: every call an integrator can make, in any language."""

GUIDE = """Play a strict fake Kommo (Chats API, signed hooks) and a demo messenger on one port.

\b
Pages    /  /customer  /manager
Kommo    POST   /v2/origin/custom/CHANNEL_ID/connect          (signed as Kommo wants it)
         DELETE /v2/origin/custom/CHANNEL_ID/disconnect
         POST   /v2/origin/custom/SCOPE_ID                    new_message, edit_message
         POST   /v2/origin/custom/SCOPE_ID/chats
         POST   /v2/origin/custom/SCOPE_ID/MSGID/delivery_status
         POST   /v2/origin/custom/SCOPE_ID/typing, …/react
         GET    /v2/origin/custom/SCOPE_ID/chats/CHAT_ID/history?offset=0&limit=50
Messenger POST  /messenger/hook                               (Standard Webhooks)

The control API takes and gives JSON, without a key. `?wait=1` answers when what was ordered has been
tried, with the status the receiver gave.

\b
POST   /control/manager/messages   {"conversation_id"|"chat_id"|"phone", "message":{…}, "sender_id"?,
                                    "scope_id"?, "receiver"?:{"client_id","name","phone","email"}}
POST   /control/manager/typing     {"conversation_id"|"chat_id", "sender_id"?, "variant"?}
POST   /control/manager/reactions  {"id"|"msgid", "emoji" ("" takes it away), "variant"?}
POST   /control/hooks              {"body":{…}} or {"raw":"…"}: any bytes, signed, as a hook
POST   /control/customer/messages  {"conversation_id"?, "sender"?:{"id","name","phone"}, "text"|"message",
                                    "message_id"?, "reply_to"?, "source"?, "silent"?, "at"?}
POST   /control/customer/edits     {"message_id", "message":{…}}
POST   /control/customer/deletes   {"message_id"}
POST   /control/customer/statuses  {"message_id"|"id", "status":"delivered|read|failed", "code"?, "text"?}
POST   /control/customer/typing    {"conversation_id", "sender"?}
POST   /control/customer/reactions {"message_id", "emoji" ("" takes it away), "sender"?}
POST   /control/customer/actions   any body: signed, posted once, gives {"status","body"}
GET    /control/kommo              connections, chats, messages …; ?after=N&limit=N&only=messages
GET    /control/messenger          pushes, customers, messages, actions;     ?after=N&limit=N&only=pushes
GET    /control/hooks              hooks sent, with what became of them;     ?after=N&limit=N
POST   /control/faults             {"where", "action", "times"?:1 (null: until cleared), "every"?:1,
                                    "seconds"?:30, "retry_after"?, "conversation_id"?, "body"?}
GET, DELETE /control/faults
DELETE /control/state              ?keep=connections

\b
where   kommo[.connect|.disconnect|.new_message|.edit_message|.chats|.delivery_status|.typing
              |.react|.history]
        messenger[.hook[.message|.typing|.reaction]]      hook[.message|.typing|.reaction|.raw]
action  kommo, messenger: 400..599, html, drop (not done), drop_after (done, not answered),
        slow (done, answered late)
        hook: slow (sent late), twice, skip, newline (one the signature does not cover), forged

\b
sandbox --port 8090 --channel c1d2…:f00d… --account 52e5… --hook-url http://127.0.0.1:8080/kommo/:scope_id
curl -d '{"conversation_id":"conv-1","message":{"type":"text","text":"Hello"}}' \\
     'http://127.0.0.1:8090/control/manager/messages?wait=1'
curl -d '{"where":"kommo.new_message","action":"503","times":3,"retry_after":1}' \\
     http://127.0.0.1:8090/control/faults
curl 'http://127.0.0.1:8090/control/kommo?only=messages'
"""
