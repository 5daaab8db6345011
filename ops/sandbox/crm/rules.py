"""A message in a chat gives the CRM an incoming lead, a talk and a contact, each with a webhook.

There is a CRM once the sandbox has an integration (`--oauth`); without one there are only chats.
"""

import time
from collections.abc import Iterable

from ops.sandbox.config import Channel, Config, CrmAccount, crm_account
from ops.sandbox.crm.payloads import incoming_hook, message_hook, talk_hook
from ops.sandbox.crm.webhooks import CrmHooks, Sent
from ops.sandbox.feed import Feed
from ops.sandbox.state.chats import Chat, Crm, Message, new_id
from ops.sandbox.state.crm import Contact, CrmState, Incoming, Lead, Link, Source, Talk

PIPELINE = 3_100_001  # Every account has one pipeline, with one stage for accepted leads.
STATUS = 143_100


class CrmRules:
    """The rules between chats and the CRM, and the webhooks that report them."""

    def __init__(self, config: Config, crm: Crm, state: CrmState, hooks: CrmHooks, feed: Feed) -> None:
        self.config, self.crm, self.crm_state, self.hooks, self.feed = config, crm, state, hooks, feed
        self._accounts = {one.amojo_id: one for one in config.crm_accounts}
        self._channels = {one.id: one for one in config.channels}

    @property
    def is_open(self) -> bool:
        """Whether there is a CRM beside the chats."""
        return bool(self.config.oauth)

    def account(self, chat: Chat) -> CrmAccount:
        """The account a chat is in."""
        amojo_id = chat.scope_id.partition("_")[2]
        return self._accounts.get(amojo_id) or crm_account(amojo_id)

    def channel(self, chat: Chat) -> Channel | None:
        """The channel a chat came by."""
        return self._channels.get(chat.scope_id.partition("_")[0])

    def bind(self, chat: Chat, external_id: str) -> None:
        """Binds a chat to the source of the account that it was written by."""
        if external_id and (not self.is_open or self.knows(self.account(chat).amojo_id, external_id)):
            chat.source = external_id

    def source(self, chat: Chat) -> str:
        """The external_id that hooks of a chat carry: its own source, else the default one, else none."""
        if not self.is_open:
            return chat.source
        known = self.crm_state.sources.of(self.account(chat).amojo_id)
        if chat.source and any(one.external_id == chat.source for one in known):
            return chat.source
        return next((one.external_id for one in known if one.default), "")

    def knows(self, amojo_id: str, external_id: str) -> bool:
        """Whether the source exists; without a CRM any does."""
        known = self.crm_state.sources.of(amojo_id)
        return not self.is_open or any(one.external_id == external_id for one in known)

    def heard(self, chat: Chat, message: Message) -> None:
        """A client has written; a silent message changes nothing in the CRM."""
        if not self.is_open or message.silent:
            return
        link = self.crm_state.link(chat.id)
        if link is None:
            link = self._incoming(chat, message)
        post = post_of(message.message)
        talk = self.crm_state.talk(chat.id, post)
        now = int(time.time())
        if talk is None or not talk.is_in_work:
            talk = Talk(
                id=self.crm_state.talks.next(),
                account=link.account,
                chat_id=chat.id,
                contact_id=link.contact_id,
                origin=channel.code if (channel := self.channel(chat)) else "",
                created_at=now,
                updated_at=now,
                entity_id=self._lead_of(link.contact_id),
                post=post,
            )
            self.crm_state.save_talk(talk)
            self._tell_talk(talk, "add")
        elif talk.is_read:
            self.change(talk, is_read=False)
        account = self.account(chat)
        content = message_hook(account, talk, message, self.crm.client(chat))
        self.hooks.tell(account, "add_message", "message", content)

    def answered(self, chat: Chat, message: Message) -> None:
        """A manager has answered: the open talk is read."""
        talk = self.crm_state.talk(chat.id, post_of(message.message))
        if talk is not None and talk.is_in_work and not talk.is_read:
            self.change(talk, is_read=True)

    def change(self, talk: Talk, **fields: bool | int) -> list[Sent]:
        """Change a talk and send its webhook."""
        for name, value in fields.items():
            setattr(talk, name, value)
        talk.updated_at = max(int(time.time()), talk.updated_at + 1)  # A later change shows as later.
        self.crm_state.save_talk(talk)
        self.feed.publish("manager", "chats")
        return self._tell_talk(talk, "update")

    def link(self, chat: Chat, contact_id: int) -> Link:
        """The chat belongs to this contact from now on; the link is a new one."""
        account = self.account(chat).amojo_id
        link = Link(id=chat.id, account=account, number=self.crm_state.number(), contact_id=contact_id)
        self.crm_state.links.save(link)
        for talk in self.crm_state.talks_of(chat.id):
            if talk.contact_id != contact_id:
                self.change(talk, contact_id=contact_id, entity_id=self._lead_of(contact_id))
        self.feed.publish("manager", "chats")
        return link

    def accept(self, incoming: Incoming, user_id: int = 0, status_id: int = 0) -> tuple[Lead, list[Sent]]:
        """An incoming lead becomes a lead with its contact."""
        lead = self.new_lead(incoming.account, f"Lead from a chat #{incoming.number}", incoming.contact_id)
        lead.source_external_id = incoming.source_external_id
        lead.status_id = status_id or lead.status_id
        self.crm_state.leads.save(lead)
        return lead, self._settle(incoming, "accept", lead.id, user_id)

    def decline(self, incoming: Incoming, user_id: int = 0) -> list[Sent]:
        """Decline an incoming lead: its contact is deleted, and the next message makes another lead."""
        link = self.crm_state.link(incoming.chat_id)
        sent = self._settle(incoming, "decline", 0, user_id)
        contact = self.crm_state.contacts.get(incoming.contact_id)
        if link is not None and contact is not None and contact.hidden:
            self.crm_state.links.delete(link)
            self.crm_state.contacts.delete(contact)
        return sent

    def join(self, incoming: Incoming, lead: Lead, contact_id: int, user_id: int = 0) -> list[Sent]:
        """Link an incoming lead to an existing lead."""
        chat = self.crm.chats.get(incoming.chat_id)
        if contact_id != incoming.contact_id:
            if chat is not None:
                self.link(chat, contact_id)
            if (hidden := self.crm_state.contacts.get(incoming.contact_id)) is not None:
                self.crm_state.contacts.delete(hidden)
            incoming.contact_id = contact_id
        return self._settle(incoming, "link", lead.id, user_id)

    def new_lead(self, account: str, name: str, contact_id: int) -> Lead:
        """A lead in the first stage."""
        now = int(time.time())
        return self.crm_state.leads.save(
            Lead(
                id=self.crm_state.leads.next(),
                account=account,
                name=name,
                contact_id=contact_id,
                pipeline_id=PIPELINE,
                status_id=STATUS,
                created_at=now,
                updated_at=now,
            )
        )

    def default(self, source: Source) -> None:
        """Make this source the default one of its integration."""
        for other in self.crm_state.sources.of(source.account):
            if other.default and other.client == source.client and other.id != source.id:
                other.default = False
                self.crm_state.sources.save(other)

    def _incoming(self, chat: Chat, message: Message) -> Link:
        client, account = self.crm.client(chat), self.account(chat)
        now = int(time.time())
        contact = self.crm_state.contacts.save(
            Contact(
                id=self.crm_state.contacts.next(),
                account=account.amojo_id,
                name=client.name,
                phone=client.phone,
                email=client.email,
                hidden=True,
                created_at=now,
                updated_at=now,
            )
        )
        link = self.link(chat, contact.id)
        incoming = Incoming(
            id=new_id().replace("-", ""),
            number=self.crm_state.number(),
            account=account.amojo_id,
            chat_id=chat.id,
            contact_id=contact.id,
            pipeline_id=PIPELINE,
            created_at=now,
            source_external_id=message.source or self.source(chat),
            message_id=message.id,
        )
        self.crm_state.incoming.save(incoming)
        self._tell_incoming(incoming, "add")
        return link

    def _settle(self, incoming: Incoming, action: str, lead_id: int, user_id: int) -> list[Sent]:
        incoming.action, incoming.lead_id, incoming.user_id = action, lead_id, user_id
        self.crm_state.incoming.save(incoming)
        contact = self.crm_state.contacts.get(incoming.contact_id)
        if contact is not None and action != "decline":
            contact.hidden = False
            self.crm_state.contacts.save(contact)
        sent = self._tell_incoming(incoming, "delete")
        for talk in self.crm_state.talks_of(incoming.chat_id):
            if lead_id:
                sent += self.change(talk, entity_id=lead_id)
        self.feed.publish("manager", "chats")
        return sent

    def update(self, incoming: Incoming) -> list[Sent]:
        """Send an incoming lead's webhook again because it changed."""
        return self._tell_incoming(incoming, "update")

    def _tell_talk(self, talk: Talk, action: str) -> list[Sent]:
        account = self._of(talk.account)
        return self.hooks.tell(account, f"{action}_talk", "talk", talk_hook(account, talk, action))

    def _tell_incoming(self, incoming: Incoming, action: str) -> list[Sent]:
        account = self._of(incoming.account)
        chat = self.crm.chats.get(incoming.chat_id)
        client = self.crm.client(chat) if chat else None
        content = incoming_hook(account, incoming, client, self.crm.messages.get(incoming.message_id), action)
        return self.hooks.tell(account, f"{action}_unsorted", "unsorted", content)

    def _of(self, amojo_id: str) -> CrmAccount:
        return self._accounts.get(amojo_id) or crm_account(amojo_id)

    def _lead_of(self, contact_id: int) -> int:
        leads: Iterable[Lead] = self.crm_state.leads
        return max((one.id for one in leads if one.contact_id == contact_id), default=0)


def post_of(content: dict[str, object]) -> str:
    """The post that a message is a comment on, or nothing."""
    post = content.get("post")
    return str(post.get("id", "")) if isinstance(post, dict) else ""
