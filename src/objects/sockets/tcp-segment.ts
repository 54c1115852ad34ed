// TCP segments that the restore writes itself, as if they came from the peer: its FIN, its acknowledgement of ours. They go
// through a raw socket to the local address, so they never leave the machine. See raw(7), RFC 9293 section 3.1.

import { RepriseError } from "../../errors.ts";
import { IPPROTO_TCP } from "../../sys/abi/inet.ts";
import { AF_INET } from "../../sys/abi/socket.ts";
import { errnoName } from "../../sys/errno.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { sockaddr, unmapped, type SocketAddress } from "./inet-address.ts";

export const FIN = 0x01;
export const ACK = 0x10;

export interface Segment {
  readonly from: SocketAddress;
  readonly to: SocketAddress;
  readonly seq: number;
  readonly ack: number;
  readonly flags: number;
  /** As it stands in the header: scaled. */
  readonly window: number;
}

/** Raw sockets that pass the network lock, one a family. */
export interface RawSender {
  send(segment: Segment): void;
}

const TCP_HEADER = 20;
const IPV4_HEADER = 20;
const IPV6_HEADER = 40;
const HOPS = 64;

/**
 * Sends segments through raw sockets (IPPROTO_RAW, marked for the lock); `socketOf` gives that of a family.
 * `send` throws RepriseError SYSCALL.
 */
export function rawSender(socketOf: (family: number) => number): RawSender {
  return {
    send(segment) {
      const packet = packetOf(segment);
      const to = sockaddr({ ...unmapped(segment.to), port: 0 });
      const fd = socketOf(unmapped(segment.to).family);
      const sent = trySyscall("sendto", fd, packet, packet.length, 0, to, to.length);
      if (sent === packet.length) return;
      throw new RepriseError(
        "SYSCALL",
        `cannot restore a connection that is being closed: sendto: ${errnoName(-sent)}`,
        {
          syscall: "sendto",
          hint: "The local address must exist, and no firewall may drop packets on lo.",
        },
      );
    },
  };
}

/** A whole packet: IP header, TCP header, no data. */
export function packetOf({ from, to, seq, ack, flags, window }: Segment): Buffer {
  const source = unmapped(from);
  const target = unmapped(to);
  const tcp = Buffer.alloc(TCP_HEADER);
  tcp.writeUInt16BE(source.port, 0);
  tcp.writeUInt16BE(target.port, 2);
  tcp.writeUInt32BE(seq >>> 0, 4);
  tcp.writeUInt32BE(ack >>> 0, 8);
  tcp.writeUInt8((TCP_HEADER / 4) << 4, 12);
  tcp.writeUInt8(flags, 13);
  tcp.writeUInt16BE(window, 14);
  const pseudo = Buffer.alloc(4);
  pseudo.writeUInt16BE(IPPROTO_TCP, 0);
  pseudo.writeUInt16BE(TCP_HEADER, 2);
  tcp.writeUInt16BE(checksum([source.bytes, target.bytes, pseudo, tcp]), 16);
  return Buffer.concat([
    target.family === AF_INET ? ipv4(source, target) : ipv6(source, target),
    tcp,
  ]);
}

/** The kernel fills in length, identification and checksum. */
function ipv4(source: SocketAddress, target: SocketAddress): Buffer {
  const header = Buffer.alloc(IPV4_HEADER);
  header.writeUInt8(0x45, 0);
  header.writeUInt16BE(IPV4_HEADER + TCP_HEADER, 2);
  header.writeUInt8(HOPS, 8);
  header.writeUInt8(IPPROTO_TCP, 9);
  header.set(source.bytes, 12);
  header.set(target.bytes, 16);
  return header;
}

function ipv6(source: SocketAddress, target: SocketAddress): Buffer {
  const header = Buffer.alloc(IPV6_HEADER);
  header.writeUInt8(0x60, 0);
  header.writeUInt16BE(TCP_HEADER, 4);
  header.writeUInt8(IPPROTO_TCP, 6);
  header.writeUInt8(HOPS, 7);
  header.set(source.bytes, 8);
  header.set(target.bytes, 24);
  return header;
}

/** The Internet checksum (RFC 1071) over parts of even length. */
function checksum(parts: readonly Uint8Array[]): number {
  let sum = 0;
  for (const part of parts) {
    for (let at = 0; at < part.length; at += 2) sum += ((part[at] ?? 0) << 8) | (part[at + 1] ?? 0);
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
