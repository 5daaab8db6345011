"""The text of `sandbox --help`: every call an integrator can make, in any language."""

GUIDE = """Play a strict fake Kommo (Chats API, CRM, both kinds of hooks) and a demo messenger on one port.

\b
Pages    /  /customer  /manager  /integrations  /oauth?client_id=…&state=…
Chats    POST   /v2/origin/custom/CHANNEL_ID/connect          (signed as Kommo wants it)
         DELETE /v2/origin/custom/CHANNEL_ID/disconnect
         POST   /v2/origin/custom/SCOPE_ID                    new_message, edit_message
         POST   /v2/origin/custom/SCOPE_ID/chats
         POST   /v2/origin/custom/SCOPE_ID/MSGID/delivery_status
         POST   /v2/origin/custom/SCOPE_ID/typing, …/react
         GET    /v2/origin/custom/SCOPE_ID/chats/CHAT_ID/history?offset=0&limit=50
Signing  Five lines joined by newlines: the METHOD in capitals, the hex MD5 of the body (of no body too), the
         Content-Type (application/json), the Date (RFC 2822, right within 15 minutes) and the path without
         query. X-Signature is their HMAC-SHA1 keyed with the secret's text, in lower-case hex; the headers
         Content-MD5, Content-Type and Date say the same as the lines.
         Hooks: X-Signature is the HMAC-SHA1 of the raw body, with the same key, in lower-case hex.
Consent  POST   /oauth2/access_token                          a code or a refresh token, once each
CRM      GET    /api/v4/account?with=amojo_id, users?with=amojo_id      (Authorization: Bearer)
         GET, POST, PATCH, DELETE /api/v4/sources[/ID]
         GET, POST /api/v4/contacts[/ID], contacts/chats, leads[/ID]
         GET, POST, PATCH, DELETE /api/v4/chats/templates[/ID]
         POST   /api/v4/chats/templates/ID/review[/REVIEW_ID]
         GET    /api/v4/talks/ID       POST …/ID/close
         GET    /api/v4/leads/unsorted[/UID]    POST …/UID/accept, …/UID/link   DELETE …/UID/decline
         GET, POST, DELETE /api/v4/webhooks
Widget   /integrations shows an account's list of integrations to one of its users: upload of a widget's
         archive, checked as Kommo does, Install (a call of the redirect URL with code, referer, client_id and
         from_widget=1, without a state), the windows that run its script.js, and Uninstall. $authorizedAjax
         sends GET /ajax/v2/integrations/CLIENT_ID/disposable_token, a JWT (HS256, the integration's secret).
Messenger POST  /messenger/hook                               (Standard Webhooks)

The CRM is there with --oauth: then a client's message that is not silent makes an incoming lead (unless its
chat is linked to a contact) and a talk (comments on a post have one of their own), and unknown sources fall
back to the default one. Its webhooks are forms, unsigned, tried five times: add_talk, update_talk,
add_message, add_unsorted, update_unsorted, delete_unsorted (action accept, decline or link),
add_chat_template_review.
Other events can be subscribed to and never come. Channels are private: --account lists who may connect.

The control API takes and gives JSON, without a key. `?wait=1` answers when what was ordered has been
tried, with the status the receiver gave.

\b
POST   /control/manager/messages   {"conversation_id"|"chat_id"|"phone", "message":{…}, "sender_id"?,
                                    "scope_id"?, "receiver"?:{"client_id","name","phone","email"},
                                    "source"?, "template_id"?, "params"?:{"contact.name":"Ann"}}
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
POST   /control/crm/authorize      {"account_id"?, "client_id"?, "redirect_uri"?, "state"?}: a code;
                                    ?wait=1 takes it to the redirect_uri
POST   /control/crm/widget         the archive as the body, ?client_id=: 422 tells what is wrong with it
POST   /control/crm/install        {"account_id"?, "client_id"?, "deliver"?:true}: as the page's "Install"
POST   /control/crm/token          {"account_id"?, "client_id"?, "user_id"?, "claims"?:{…},
                                    "algorithm"?:"HS256|none"}: a one-time token, or a false one
POST   /control/crm/expire, /control/crm/revoke               {"account_id"?, "client_id"?}
POST   /control/crm/disable        {"account_id"?, "client_id"?, "url"?}: disconnects, calls --disabled-url
POST   /control/crm/account        {"account_id"?, "name"?, "subdomain"?, "time_zone"?, "currency"?,
                                    "country"?, "language"?, "plan"?, "host"?}: its CRM is at `host`,
                                    and answers 301 elsewhere
POST   /control/crm/talks          {"talk_id"|"chat_id", "is_read"?, "rate"?, "close"?}
POST   /control/crm/incoming       {"uid"|"chat_id", "action":"accept|decline|link|update", "lead_id"?,
                                    "contact_id"?, "user_id"?}
POST   /control/crm/reviews        {"template_id"}
POST   /control/crm/hooks/repeat   {"n"}: a webhook once more
GET    /control/kommo              connections, chats, messages …; ?after=N&limit=N&only=messages
GET    /control/crm                accounts, contacts, links, sources, talks, leads …
GET    /control/crm/hooks          CRM webhooks, with every try
GET    /control/messenger          pushes, customers, messages, actions;     ?after=N&limit=N&only=pushes
GET    /control/hooks              hooks sent, what became of them, queues;  ?after=N&limit=N
POST   /control/faults             {"where", "action", "times"?:1 (null: until cleared), "every"?:1,
                                    "seconds"?:30, "retry_after"?, "conversation_id"?, "body"?,
                                    "status"?:403 (of html and html_after)}
GET, DELETE /control/faults
DELETE /control/state              ?keep=connections

\b
where   kommo[.connect|.disconnect|.new_message|.edit_message|.chats|.delivery_status|.typing
              |.react|.history]
        crm[.token|.one_time|.account|.users|.sources|.contacts|.links|.templates|.talks|.unsorted|.leads
           |.webhooks]
        messenger[.hook[.message|.typing|.reaction]]      hook[.message|.typing|.reaction|.raw]
        crmhook[.talk|.unsorted|.message|.template]
action  kommo, crm, messenger: 400..599, html, drop (not done), drop_after (done, not answered),
        html_after (done, a page for an answer), slow (done, answered late)
        hook: slow (sent late), twice, skip, newline (one the signature does not cover), forged
        crmhook: slow, twice, skip

\b
sandbox --port 8090 --channel c1d2…:f00d… --account 52e5… --hook-url http://127.0.0.1:8080/kommo/:scope_id
        --oauth 7d1a…:secret:http://127.0.0.1:8080/oauth/callback
curl -d '{"conversation_id":"conv-1","message":{"type":"text","text":"Hello"}}' \\
     'http://127.0.0.1:8090/control/manager/messages?wait=1'
curl -X POST 'http://127.0.0.1:8090/control/crm/authorize?wait=1'
curl -d '{"where":"kommo.new_message","action":"503","times":3,"retry_after":1}' \\
     http://127.0.0.1:8090/control/faults
curl 'http://127.0.0.1:8090/control/kommo?only=messages'
"""
