"""The CRM's state: consents, contacts, sources, templates, talks, leads and webhooks."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Generic, TypeVar

from msgspec import Struct, field

from ops.sandbox.config import CHATS_MAX
from ops.sandbox.state.store import Store


class Token(Struct, kw_only=True):
    """A code, an access or a refresh token; `account` is the amojo id, `expires` unix seconds."""

    id: str
    kind: str
    account: str
    client: str
    expires: float
    redirect_uri: str = ""
    user: str = ""


class Contact(Struct, kw_only=True):
    """`hidden` while it is only inside an incoming lead."""

    id: int
    account: str
    name: str = ""
    first_name: str = ""
    last_name: str = ""
    phone: str = ""
    email: str = ""
    fields: list[dict[str, object]] = field(default_factory=list)
    hidden: bool = False
    created_at: int = 0
    updated_at: int = 0


class Link(Struct, kw_only=True):
    """The chat `id` belongs to this contact; a new link has a new number."""

    id: str
    account: str
    number: int
    contact_id: int


class Source(Struct, kw_only=True):
    id: int
    account: str
    client: str
    name: str
    external_id: str
    pipeline_id: int = 0
    default: bool = False
    origin_code: str | None = None
    services: list[dict[str, object]] = field(default_factory=list)


class Review(Struct, kw_only=True):
    """The review of a template for one WhatsApp source."""

    id: int
    source_id: int
    status: str = "review"
    reject_reason: str = ""


class Template(Struct, kw_only=True):
    """`told` is the template's fields as they were given; `editable` goes once it is out for review."""

    id: int
    account: str
    client: str
    told: dict[str, object]
    created_at: int
    updated_at: int
    reviews: list[Review] = field(default_factory=list)


class Talk(Struct, kw_only=True):
    """A talk with the client of a chat, from his first message until it is closed.

    Comments on a `post` are a talk of their own.
    """

    id: int
    account: str
    chat_id: str
    contact_id: int
    origin: str
    created_at: int
    updated_at: int
    entity_id: int = 0
    post: str = ""
    rate: int = 0
    is_in_work: bool = True
    is_read: bool = False


class Incoming(Struct, kw_only=True):
    """An incoming lead; `action` is empty until it is accepted, declined or linked."""

    id: str
    number: int
    account: str
    chat_id: str
    contact_id: int
    pipeline_id: int
    created_at: int
    source_external_id: str = ""
    action: str = ""
    lead_id: int = 0
    user_id: int = 0
    message_id: str = ""


class Lead(Struct, kw_only=True):
    id: int
    account: str
    name: str
    contact_id: int = 0
    pipeline_id: int = 0
    status_id: int = 0
    price: int = 0
    source_external_id: str = ""
    created_at: int = 0
    updated_at: int = 0


class Subscription(Struct, kw_only=True):
    """A destination of an account's CRM webhooks; `disabled` after too many invalid answers."""

    id: int
    account: str
    destination: str
    settings: list[str]
    created_at: int
    updated_at: int
    disabled: bool = False


class Disabled(Struct, kw_only=True):
    """An integration that its account has disabled; `id` is `account/client`."""

    id: str


class Profile(Struct, kw_only=True):
    """How the CRM describes the account `id`; at another host than `host`, if there is one, it answers 301.

    Kommo documents neither an account's language nor its plan: empty ones are left out.
    """

    id: str
    name: str = ""
    subdomain: str = ""
    time_zone: str = "UTC"
    currency: str = "USD"
    country: str = "US"
    language: str = ""
    plan: str = ""
    host: str = ""


class Archive(Struct, kw_only=True):
    """The widget of the integration `id`: its files by their names."""

    id: str
    files: dict[str, bytes]
    uploaded_at: int


class Installed(Struct, kw_only=True):
    """An integration that stands in an account; `id` is `account/client`."""

    id: str
    installed_at: int


Row = TypeVar("Row", bound=Struct)


class Table(Generic[Row]):
    """Rows of one kind by id, in memory and in the store.

    Numbers begin after `first`: no two kinds have the same, so that one taken for another is not found.
    """

    def __init__(self, store: Store, kind: str, shape: type[Row], first: int = 0) -> None:
        self.store, self.kind = store, kind
        self.rows: dict[int | str, Row] = {_id(row): row for row in store.load(kind, shape)}
        self._last = max((key for key in self.rows if isinstance(key, int)), default=first)

    def __iter__(self) -> Iterator[Row]:
        return iter(list(self.rows.values()))

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, id: int | str) -> Row | None:
        """The one with this id."""
        return self.rows.get(id)

    def of(self, account: str) -> list[Row]:
        """Those of an account, oldest first."""
        return [row for row in self if getattr(row, "account", "") == account]

    def next(self) -> int:
        """A number that no row of this kind ever had."""
        self._last += 1
        return self._last

    def save(self, row: Row) -> Row:
        """Keep it, new or changed."""
        self.rows[_id(row)] = row
        self.store.save(self.kind, str(_id(row)), row)
        self.trim()
        return row

    def delete(self, row: Row) -> None:
        """Forget it."""
        if self.rows.pop(_id(row), None) is not None:
            self.store.delete(self.kind, str(_id(row)))

    def clear(self) -> None:
        """Forget all; numbers go on."""
        self.rows.clear()
        self.store.clear((self.kind,))

    def trim(self) -> None:
        """Beyond the limit the oldest is forgotten."""
        if len(self.rows) > CHATS_MAX:
            self.delete(next(iter(self.rows.values())))


class CrmState:
    """The tables of the CRM."""

    def __init__(self, store: Store) -> None:
        self.tokens = Table(store, "token", Token)
        self.disabled = Table(store, "disabled", Disabled)
        self.profiles = Table(store, "profile", Profile)
        self.installed = Table(store, "installed", Installed)
        self.archives = Table(store, "archive", Archive)
        self.subscriptions = Table(store, "subscription", Subscription, 800_000)
        self.contacts = Table(store, "contact", Contact, 40_000_000)
        self.links = Table(store, "link", Link)
        self.sources = Table(store, "source", Source, 7_000_000)
        self.templates = Table(store, "template", Template, 90_000)
        self.reviews = 5000  # the last number of a review
        for template in self.templates:
            self.reviews = max([self.reviews, *(one.id for one in template.reviews)])
        self.talks = Table(store, "talk", Talk, 1_000)
        self.incoming = Table(store, "incoming", Incoming)
        self.leads = Table(store, "lead", Lead, 20_000_000)
        self._talks: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for talk in self.talks:
            self._talks[talk.chat_id][talk.post] = talk.id
        self._numbers = max(
            [2000, *(one.number for one in self.links), *(one.number for one in self.incoming)]
        )

    def number(self) -> int:
        """A number for a link or an incoming lead."""
        self._numbers += 1
        return self._numbers

    def link(self, chat_id: str) -> Link | None:
        """The contact that a chat is linked to."""
        return self.links.get(chat_id)

    def talk(self, chat_id: str, post: str = "") -> Talk | None:
        """The latest talk of a chat, or of the comments on a post in it."""
        return self.talks.get(self._talks[chat_id].get(post, 0)) if chat_id in self._talks else None

    def talks_of(self, chat_id: str) -> list[Talk]:
        """The latest talk of a chat and of each post in it."""
        found = [self.talks.get(id) for id in self._talks.get(chat_id, {}).values()]
        return [one for one in found if one is not None]

    def waiting(self, chat_id: str) -> Incoming | None:
        """The incoming lead of a chat that has not been accepted or declined."""
        found = (one for one in self.incoming if one.chat_id == chat_id and not one.action)
        return next(found, None)

    def save_talk(self, talk: Talk) -> None:
        """Keep a talk, new or changed."""
        self.talks.save(talk)
        talks = self._talks[talk.chat_id]
        talks[talk.post] = max(talk.id, talks.get(talk.post, 0))

    def clear(self, *, keep_consent: bool) -> None:
        """Forget everything, and consents and subscriptions too unless asked to keep them."""
        consent = (
            self.tokens.clear,
            self.disabled.clear,
            self.profiles.clear,
            self.installed.clear,
            self.archives.clear,
            self.subscriptions.clear,
        )
        content = (
            self.contacts.clear,
            self.links.clear,
            self.sources.clear,
            self.templates.clear,
            self.talks.clear,
            self.incoming.clear,
            self.leads.clear,
        )
        self._talks.clear()
        for clear in content if keep_consent else (*consent, *content):
            clear()


def _id(row: Struct) -> int | str:
    id: int | str = row.id  # type: ignore[attr-defined]  # every shape above has one
    return id
