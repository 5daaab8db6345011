"""What the consumer promises: every message, in order, from where it left off, whatever happens."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from app.servers.nats import PrivateNats
from app.stream import jetstream
from app.stream.consumer import Consumer, partition_subjects, sequence_of
from app.stream.jetstream import NatsClient
from tests.support.ledgers.stream_ledger import until

ALL = ["ledger.>"]


class Reader:
    """Keeps what it is given; acknowledges at once if told to."""

    def __init__(self, *, acknowledge: bool = True) -> None:
        self.seen: list[int] = []
        self.acks: dict[int, Callable[[], None]] = {}
        self.acknowledge = acknowledge

    def __call__(self, sequence: int, data: bytes, ack: Callable[[], None]) -> None:
        assert data == b"%d" % sequence
        self.seen.append(sequence)
        self.acks[sequence] = ack
        if self.acknowledge:
            ack()


@pytest.fixture
async def nats(nats_own: PrivateNats) -> AsyncIterator[NatsClient]:
    connection = await jetstream.connect(nats_own.url, name="test")
    await make_stream(connection)
    yield connection
    await connection.close()


async def make_stream(nats: NatsClient, first: int = 1) -> None:
    await jetstream.create_stream(
        nats, {"name": "LEDGER", "subjects": ["ledger.>"], "first_seq": first, "allow_direct": True}
    )


async def publish(nats: NatsClient, first: int, last: int) -> None:
    """The message at sequence n says n, is in partition n mod 64, and sent or read in turns."""
    for n in range(first, last + 1):
        kind = "message_sent" if n % 2 else "message_read"
        await nats.request(f"ledger.p{n % 64:02d}.a.c.{kind}", b"%d" % n, timeout=5)


async def all_acknowledged(nats: NatsClient, *, but: int = 0) -> bool:
    """The server takes acknowledgements in its own time."""
    async with asyncio.timeout(5):
        while True:
            info = await jetstream.consumer_info(nats, "reader")
            if info and (info.num_pending, info.num_ack_pending) == (0, but):
                return True


async def test_a_reader_of_positions_gets_no_bodies(nats: NatsClient) -> None:
    seen: list[tuple[int, bytes]] = []

    def read(sequence: int, data: bytes, ack: Callable[[], None]) -> None:
        seen.append((sequence, data))
        ack()

    consumer = Consumer(nats, "reader", ALL, 1, read, headers_only=True)
    await consumer.start()
    await publish(nats, 1, 20)
    await until(lambda: len(seen) == 20)
    await consumer.stop()
    assert seen == [(number, b"") for number in range(1, 21)]


async def test_messages_come_in_order_and_acknowledged_ones_not_again(nats: NatsClient) -> None:
    await publish(nats, 1, 30)
    reader = Reader()
    consumer = Consumer(nats, "reader", ALL, 1, reader, outstanding=8)
    await consumer.start()
    await publish(nats, 31, 60)
    await until(lambda: len(reader.seen) == 60)
    await consumer.stop()
    assert reader.seen == list(range(1, 61))
    assert await all_acknowledged(nats)
    again = Reader()
    consumer = Consumer(nats, "reader", ALL, 1, again)
    await consumer.start()
    await publish(nats, 61, 61)
    await until(lambda: again.seen == [61])
    await consumer.stop()


async def test_a_consumer_starts_at_any_position(nats: NatsClient) -> None:
    await publish(nats, 1, 20)
    reader = Reader()
    consumer = Consumer(nats, "reader", ALL, 15, reader)
    await consumer.start()
    await until(lambda: reader.seen == [15, 16, 17, 18, 19, 20])
    await consumer.stop()


async def test_a_filter_lets_its_partitions_and_types_through(nats: NatsClient) -> None:
    await publish(nats, 1, 70)
    reader = Reader()
    consumer = Consumer(nats, "reader", partition_subjects([1, 2, 3, 5], ["message.sent"]), 1, reader)
    await consumer.start()
    await until(lambda: reader.seen == [1, 3, 5, 65, 67, 69])
    await consumer.stop()


async def test_a_successor_gets_what_was_not_acknowledged_first_and_in_order(nats: NatsClient) -> None:
    await publish(nats, 1, 10)
    reader = Reader(acknowledge=False)
    consumer = Consumer(nats, "reader", ALL, 1, reader, outstanding=5)
    await consumer.start()
    await until(lambda: len(reader.seen) >= 5)
    for sequence in (1, 3):
        reader.acks[sequence]()
    await consumer.stop()
    successor = Reader()
    consumer = Consumer(nats, "reader", ALL, 1, successor, outstanding=5)
    await consumer.start()
    await until(lambda: 10 in successor.seen)
    await consumer.stop()
    assert successor.seen[-9:] == list(range(2, 11))


async def test_acknowledgements_may_come_late_and_twice(nats: NatsClient) -> None:
    await publish(nats, 1, 3)
    reader = Reader(acknowledge=False)
    consumer = Consumer(nats, "reader", ALL, 1, reader)
    await consumer.start()
    await until(lambda: len(reader.seen) == 3)
    for sequence in (3, 3, 1, 2, 2):
        reader.acks[sequence]()
        await asyncio.sleep(0)
    await consumer.stop()
    assert await all_acknowledged(nats)


async def test_other_settings_make_the_consumer_anew(nats: NatsClient) -> None:
    await publish(nats, 1, 4)
    for filters, expected in ((ALL, [1, 2, 3, 4]), (["ledger.*.*.*.message_sent"], [1, 3])):
        reader = Reader()
        consumer = Consumer(nats, "reader", filters, 1, reader)
        await consumer.start()
        await until(lambda: len(reader.seen) == len(expected))  # noqa: B023
        await consumer.stop()
        assert reader.seen == expected


@pytest.mark.parametrize("what", ["CONSUMER.DELETE.LEDGER.reader", "STREAM.DELETE.LEDGER"])
async def test_a_consumer_or_stream_made_anew_is_taken_up(nats: NatsClient, what: str) -> None:
    await publish(nats, 1, 10)
    reader = Reader()
    consumer = Consumer(nats, "reader", ALL, 1, reader)
    await consumer.start()
    await until(lambda: len(reader.seen) == 10)
    await jetstream.call(nats, what)
    if what.startswith("STREAM"):
        await make_stream(nats)
        await publish(nats, 1, 10)
    await publish(nats, 11, 20)
    await until(lambda: reader.seen[-1] == 20)
    await consumer.stop()
    assert reader.seen[-10:] == list(range(11, 21))


async def test_a_stream_that_begins_later_is_followed(nats: NatsClient) -> None:
    await publish(nats, 1, 3)
    reader = Reader()
    consumer = Consumer(nats, "reader", ALL, 1, reader)
    await consumer.start()
    await until(lambda: len(reader.seen) == 3)
    await jetstream.delete_stream(nats)
    await make_stream(nats, first=100)
    await publish(nats, 100, 102)
    await until(lambda: reader.seen == [1, 2, 3, 100, 101, 102])
    await consumer.stop()


async def test_a_killed_server_costs_nothing_but_repeats(nats: NatsClient, nats_own: PrivateNats) -> None:
    reader = Reader()
    consumer = Consumer(nats, "reader", ALL, 1, reader)
    await consumer.start()
    for first in range(1, 61, 20):
        await publish(nats, first, first + 19)
        assert nats_own.process
        nats_own.process.kill()
        nats_own.process.wait()
        await nats_own.stop()
        await nats_own.start()
        await until(lambda: nats.is_connected)
    await publish(nats, 61, 62)
    await until(lambda: reader.seen[-1] == 62)
    await consumer.stop()
    assert list(dict.fromkeys(reader.seen)) == list(range(1, 63))


async def test_silence_is_noticed(nats: NatsClient) -> None:
    reader = Reader()
    consumer = Consumer(nats, "reader", ALL, 1, reader)
    await consumer.start()
    await consumer.stop()
    consumer = Consumer(nats, "reader", ALL, 1, reader)
    await consumer.start()
    consumer._round += 1  # The server answers into the void, as after a pull that it forgot.
    consumer._heard_at -= 3600
    await publish(nats, 1, 1)
    await until(lambda: reader.seen == [1], seconds=10)
    await consumer.stop()


async def test_a_message_that_its_reader_refuses_comes_again(nats: NatsClient) -> None:
    await publish(nats, 1, 2)
    seen = []

    def refuse_once(sequence: int, data: bytes, ack: Callable[[], None]) -> None:
        seen.append(sequence)
        if seen == [1]:
            raise ZeroDivisionError
        ack()

    consumer = Consumer(nats, "reader", ALL, 1, refuse_once)
    await consumer.start()
    await until(lambda: seen == [1, 2])
    assert await all_acknowledged(nats, but=1)
    await jetstream.reset_consumer(nats, "reader")
    await until(lambda: seen[:3] == [1, 2, 1])
    await consumer.stop()


async def test_no_stream_is_an_error_at_the_start(nats_own: PrivateNats) -> None:
    connection = await jetstream.connect(nats_own.url, name="test")
    with pytest.raises(jetstream.StreamRefused, match="stream not found"):
        await Consumer(connection, "reader", ALL, 1, Reader()).start()
    await connection.close()


async def test_a_server_that_does_not_let_us_in_is_an_error(nats_own: PrivateNats) -> None:
    for url in (nats_own.url.replace(nats_own.token, "wrong"), "nats://127.0.0.1:1"):
        with pytest.raises(jetstream.StreamUnavailable, match="no NATS server lets us in"):
            await jetstream.connect(url, name="test", seconds=1)


def test_filters_are_as_few_as_it_takes() -> None:
    assert partition_subjects(range(64)) == ["ledger.>"]
    assert partition_subjects(range(64), ["message.sent"]) == ["ledger.*.*.*.message_sent"]
    assert partition_subjects([7, 0]) == ["ledger.p00.>", "ledger.p07.>"]
    assert partition_subjects([1], ["a.b", "c"]) == ["ledger.p01.*.*.a_b", "ledger.p01.*.*.c"]
    for wrong in ([], [64], [-1]):
        with pytest.raises(ValueError, match="from 0 to 63"):
            partition_subjects(wrong)


def test_the_sequence_is_read_from_either_form_of_reply() -> None:
    assert sequence_of("$JS.ACK.LEDGER.reader.1.42.7.1700000000.0") == 42
    assert sequence_of("$JS.ACK.hub.AC0UNT.LEDGER.reader.1.42.7.1700000000.0.r4nd0m") == 42
