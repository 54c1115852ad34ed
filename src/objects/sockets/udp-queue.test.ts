import { afterEach, expect, it } from "vitest";
import { IPPROTO_UDP, IPPROTO_UDPLITE } from "../../sys/abi/inet.ts";
import { AF_INET, AF_INET6, MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_DGRAM } from "../../sys/abi/socket.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { receiveMessage } from "../../sys/socket.ts";
import { readLocal, readSockaddr, sockaddr, type SocketAddress } from "./inet-address.ts";
import { PacketSender } from "./ip-packet.ts";
import { peekDatagrams, refillDatagrams } from "./udp-queue.ts";

const LOOPBACK = Uint8Array.of(127, 0, 0, 1);
const LOOPBACK6 = Uint8Array.from({ length: 16 }, (_, at) => Number(at === 15));

const opened: number[] = [];

afterEach(() => {
  for (const fd of opened.splice(0)) trySyscall("close", fd);
});

it.each([
  { what: "IPv4", family: AF_INET, proto: IPPROTO_UDP },
  { what: "IPv6", family: AF_INET6, proto: IPPROTO_UDP },
  { what: "UDP-Lite", family: AF_INET, proto: IPPROTO_UDPLITE },
])("datagrams of $what are looked at and put back, with their senders", ({ family, proto }) => {
  const sender = bound(family, proto);
  const receiver = bound(family, proto);
  const texts = ["one", "", "of odd length", "x".repeat(60_000)];
  for (const text of texts) send(sender.fd, receiver.local, text);
  const datagrams = peekDatagrams(receiver.fd);
  expect(datagrams.map(({ data }) => Buffer.from(data).toString())).toEqual(texts);
  for (const { source } of datagrams)
    expect(readSockaddr(Buffer.from(source))).toEqual(sender.local);
  // They are still there.
  expect(texts.map(() => take(receiver.fd))).toEqual(texts);
  expect(take(receiver.fd)).toBeUndefined();

  const packets = new PacketSender();
  const reprise = { options: [], memberships: [], datagrams, signature_keys: [] };
  const entry = { id: 1, proto, reprise };
  refillDatagrams(receiver.fd, { entry, local: receiver.local, shared: false }, packets);
  packets.close();
  expect(peekDatagrams(receiver.fd)).toEqual(datagrams);
});

function bound(family: number, proto: number): { fd: number; local: SocketAddress } {
  const fd = syscall("socket", family, SOCK_DGRAM | SOCK_CLOEXEC, proto);
  opened.push(fd);
  const bytes = family === AF_INET ? LOOPBACK : LOOPBACK6;
  const address = sockaddr({ family, port: 0, bytes, scope: 0 });
  syscall("bind", fd, address, address.length);
  const local = readLocal(fd);
  if (local === undefined) throw new Error("a socket without an address");
  return { fd, local };
}

function send(fd: number, to: SocketAddress, text: string): void {
  const address = sockaddr(to);
  const data = Buffer.from(text);
  syscall("sendto", fd, data, data.length, 0, address, address.length);
}

function take(fd: number): string | undefined {
  const message = receiveMessage(fd, Buffer.alloc(70_000), MSG_DONTWAIT);
  return typeof message === "number" ? undefined : message.data.toString();
}
