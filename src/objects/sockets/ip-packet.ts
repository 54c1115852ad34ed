// Packets that the restore writes itself, as if they came from somebody else: a peer's FIN, a datagram that waited to be read.
// They go through a raw socket to a local address, so they never leave the machine, and carry the mark that passes the
// network lock. See raw(7), RFC 791, RFC 8200.

import { closeSync } from "node:fs";
import { RepriseError } from "../../errors.ts";
import { IPPROTO_RAW } from "../../sys/abi/inet.ts";
import { AF_INET, SO_MARK, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET } from "../../sys/abi/socket.ts";
import { errnoName } from "../../sys/errno.ts";
import { syscall, trySyscall } from "../../sys/ffi.ts";
import { setNumber } from "../../sys/socket.ts";
import { LOCK_MARK } from "../network/lock.ts";
import { sockaddr, unmapped, type SocketAddress } from "./inet-address.ts";
import { besideSocket, namespaceInode } from "./socket-namespace.ts";

/** What lies in an IP packet. */
export interface Payload {
  readonly from: SocketAddress;
  readonly to: SocketAddress;
  /** IPPROTO_… */
  readonly protocol: number;
  /** Header of the protocol, with zero for its checksum, and data. */
  readonly body: Buffer;
  /** Where the checksum stands in the body. */
  readonly checksumAt: number;
}

const IPV4_HEADER = 20;
const IPV6_HEADER = 40;
const HOPS = 64;

/** Raw sockets, one a network namespace and family. */
export class PacketSender {
  readonly #sockets = new Map<string, number>();

  /**
   * Sends a packet in the network namespace of the socket that is to get it.
   * @throws RepriseError SYSCALL
   */
  send(receiver: number, payload: Payload): void {
    const packet = ipPacket(payload);
    const target = unmapped(payload.to);
    const to = sockaddr({ ...target, port: 0 });
    const fd = this.#socket(receiver, target.family);
    const sent = trySyscall("sendto", fd, packet, packet.length, 0, to, to.length);
    if (sent === packet.length) return;
    throw new RepriseError(
      "SYSCALL",
      `cannot write a packet to a socket: sendto: ${errnoName(-sent)}`,
      {
        syscall: "sendto",
        errno: errnoName(-sent),
        hint: "The local address must exist, and no firewall may drop packets on lo.",
      },
    );
  }

  close(): void {
    for (const fd of this.#sockets.values()) closeSync(fd);
    this.#sockets.clear();
  }

  #socket(receiver: number, family: number): number {
    const key = `${namespaceInode(receiver)}:${family}`;
    let fd = this.#sockets.get(key);
    if (fd === undefined) {
      fd = besideSocket(receiver, () =>
        syscall("socket", family, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW),
      );
      this.#sockets.set(key, fd);
      setNumber(fd, { level: SOL_SOCKET, name: SO_MARK, value: LOCK_MARK });
    }
    return fd;
  }
}

/** A whole packet, with its checksums. */
function ipPacket({ from, to, protocol, body, checksumAt }: Payload): Buffer {
  const source = unmapped(from);
  const target = unmapped(to);
  const pseudo = Buffer.alloc(8);
  pseudo.writeUInt32BE(body.length, 0);
  pseudo.writeUInt32BE(protocol, 4);
  const sum = checksum([source.bytes, target.bytes, pseudo, body]);
  // In UDP zero would mean that there is none.
  body.writeUInt16BE(sum === 0 ? 0xffff : sum, checksumAt);
  const header = target.family === AF_INET ? ipv4 : ipv6;
  return Buffer.concat([header(source, target, { protocol, size: body.length }), body]);
}

interface Inside {
  readonly protocol: number;
  readonly size: number;
}

/** The kernel fills in identification and checksum. */
function ipv4(source: SocketAddress, target: SocketAddress, { protocol, size }: Inside): Buffer {
  const header = Buffer.alloc(IPV4_HEADER);
  header.writeUInt8(0x45, 0);
  header.writeUInt16BE(IPV4_HEADER + size, 2);
  header.writeUInt8(HOPS, 8);
  header.writeUInt8(protocol, 9);
  header.set(source.bytes, 12);
  header.set(target.bytes, 16);
  return header;
}

function ipv6(source: SocketAddress, target: SocketAddress, { protocol, size }: Inside): Buffer {
  const header = Buffer.alloc(IPV6_HEADER);
  header.writeUInt8(0x60, 0);
  header.writeUInt16BE(size, 4);
  header.writeUInt8(protocol, 6);
  header.writeUInt8(HOPS, 7);
  header.set(source.bytes, 8);
  header.set(target.bytes, 24);
  return header;
}

/** The Internet checksum (RFC 1071); of all parts but the last one the length is even. */
function checksum(parts: readonly Uint8Array[]): number {
  let sum = 0;
  for (const part of parts) {
    for (let at = 0; at < part.length; at += 2) sum += ((part[at] ?? 0) << 8) | (part[at + 1] ?? 0);
  }
  while (sum > 0xffff) sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
  return ~sum & 0xffff;
}
