// Datagrams that wait in a UDP socket: looked at without taking them out (MSG_PEEK with a moving SO_PEEK_OFF), and written to
// the socket again as packets from whoever sent them. See udp(7), net/ipv4/udp.c. CRIU drops them.

import { RepriseError } from "../../errors.ts";
import type { InetSkEntry, RepriseDatagram } from "../../images/schema/messages.generated.ts";
import { log } from "../../log.ts";
import * as so from "../../sys/abi/socket.ts";
import { EAGAIN, errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { POLLIN } from "../../sys/abi/poll.ts";
import { getNumber, receiveMessage, setNumber } from "../../sys/socket.ts";
import {
  isAny,
  readLocal,
  readSockaddr,
  sockaddr,
  unmapped,
  type SocketAddress,
} from "./inet-address.ts";
import type { PacketSender } from "./ip-packet.ts";
import { eventsOf } from "./told.ts";

/** The largest datagram. */
const DATAGRAM_MAX = 65_535;
const NO_OFFSET = -1;
/** One for all: 64 KiB for each of thousands of sockets would have V8 collect garbage. */
let room: Buffer | undefined;

/**
 * What waits in a socket, in order. Source addresses are sockaddrs.
 * @throws RepriseError SYSCALL
 */
export function peekDatagrams(fd: number): RepriseDatagram[] {
  if ((eventsOf(fd, POLLIN) & POLLIN) === 0) return [];
  const buffer = (room ??= Buffer.allocUnsafe(DATAGRAM_MAX));
  const flags = so.MSG_PEEK | so.MSG_DONTWAIT;
  const peek = (): ReturnType<typeof receiveMessage> => receiveMessage(fd, buffer, flags);
  const offset = getNumber(fd, so.SOL_SOCKET, so.SO_PEEK_OFF);
  // A peek moves an offset that is set, and may stand behind what waits.
  if (offset < 0 && peek() === -EAGAIN) return [];
  const move = (value: number): void =>
    setNumber(fd, { level: so.SOL_SOCKET, name: so.SO_PEEK_OFF, value });
  const datagrams: RepriseDatagram[] = [];
  try {
    move(0);
    for (let message = peek(); message !== -EAGAIN; message = peek()) {
      if (typeof message === "number") {
        throw new RepriseError(
          "SYSCALL",
          `cannot look into a UDP socket: recvmsg: ${errnoName(-message)}`,
          {
            syscall: "recvmsg",
            errno: errnoName(-message),
          },
        );
      }
      datagrams.push({
        source: Uint8Array.from(message.name),
        data: Uint8Array.from(message.data),
      });
    }
    return datagrams;
  } finally {
    move(offset < 0 ? NO_OFFSET : offset);
  }
}

export interface Refill {
  readonly entry: Pick<InetSkEntry, "id" | "proto" | "reprise">;
  readonly local: SocketAddress;
  /** Other sockets have the same port: each datagram must find this one. */
  readonly shared: boolean;
}

/** Puts datagrams back into a bound socket that is not connected yet. What does not arrive is told in the log. */
export function refillDatagrams(
  fd: number,
  { entry, local, shared }: Refill,
  sender: PacketSender,
): void {
  const datagrams = entry.reprise?.datagrams ?? [];
  for (const { source, data } of datagrams) {
    const from = readSockaddr(Buffer.from(source));
    if (from === undefined) continue;
    // The kernel prefers a socket that is connected to the sender, which gives it a local address.
    if (shared) connect(fd, sockaddr(from));
    const to = destination((shared ? readLocal(fd) : undefined) ?? local, from);
    sender.send(fd, udpDatagram({ from, to, protocol: entry.proto, data }));
    if (shared) connect(fd, NOBODY);
  }
  const first = datagrams[0];
  if (first === undefined) return;
  const arrived = receiveMessage(fd, Buffer.alloc(1), so.MSG_PEEK | so.MSG_DONTWAIT | so.MSG_TRUNC);
  if (typeof arrived === "number" || arrived.length !== first.data.length) {
    log.warn(`socket ${entry.id}: ${datagrams.length} datagrams that waited to be read are lost`);
  }
}

/** struct sockaddr with AF_UNSPEC. */
const NOBODY = Buffer.alloc(16);

function connect(fd: number, address: Buffer): void {
  const result = trySyscall("connect", fd, address, address.length);
  if (result < 0) log.warn(`a datagram may find another socket: connect: ${errnoName(-result)}`);
}

/** A socket that is bound to no address gets packets to this machine, of the family of the sender. */
function destination(local: SocketAddress, from: SocketAddress): SocketAddress {
  if (!isAny(local)) return local;
  const { family } = unmapped(from);
  const bytes = family === so.AF_INET ? LOOPBACK : LOOPBACK6;
  return { family, port: local.port, bytes, scope: 0 };
}

const LOOPBACK = Uint8Array.of(127, 0, 0, 1);
const LOOPBACK6 = Uint8Array.from({ length: 16 }, (_, at) => (at === 15 ? 1 : 0));

const UDP_HEADER = 8;

function udpDatagram({
  from,
  to,
  protocol,
  data,
}: {
  readonly from: SocketAddress;
  readonly to: SocketAddress;
  readonly protocol: number;
  readonly data: Uint8Array;
}): Parameters<PacketSender["send"]>[1] {
  const body = Buffer.alloc(UDP_HEADER + data.length);
  body.writeUInt16BE(from.port, 0);
  body.writeUInt16BE(to.port, 2);
  // The length; in UDP-Lite, how much the checksum covers.
  body.writeUInt16BE(body.length, 4);
  body.set(data, UDP_HEADER);
  return { from, to, protocol, body, checksumAt: 6 };
}
