// Addresses of internet sockets: struct sockaddr_in and sockaddr_in6 (netinet/in.h), the words of inet_sk_entry (as they lie
// in memory), and text.

import { AF_INET, AF_INET6, SO_PEERNAME, SOL_SOCKET } from "../../sys/abi/socket.ts";
import { syscall } from "../../sys/ffi.ts";
import { getOption } from "../../sys/socket.ts";
import { toldOf } from "./told.ts";

/** One end of a connection, as text. */
export interface Endpoint {
  readonly family: "ipv4" | "ipv6";
  readonly address: string;
  readonly port: number;
}

/** One end, as the kernel and the images have it. */
export interface SocketAddress {
  readonly family: number;
  readonly port: number;
  /** 4 or 16 bytes. */
  readonly bytes: Uint8Array;
  /** Interface index of an IPv6 address that is valid on one link only; else 0. */
  readonly scope: number;
}

const SOCKADDR_IN6_SIZE = 28;
const SOCKADDR_IN_SIZE = 16;

/** The address that a socket has. @throws RepriseError SYSCALL */
export function readLocal(fd: number): SocketAddress | undefined {
  const known = toldOf(fd);
  if (known !== undefined) return readSockaddr(known.address);
  const address = Buffer.alloc(SOCKADDR_IN6_SIZE);
  const length = Buffer.alloc(4);
  length.writeInt32LE(address.length);
  syscall("getsockname", fd, address, length);
  return readSockaddr(address);
}

/** The address that a socket is connected to, or was, or is about to be. */
export function readRemote(fd: number, family: number): SocketAddress | undefined {
  // The kernel wants exactly the size of the family's address.
  const size = family === AF_INET ? SOCKADDR_IN_SIZE : SOCKADDR_IN6_SIZE;
  const address = getOption(fd, { level: SOL_SOCKET, name: SO_PEERNAME, size });
  return typeof address === "number" ? undefined : readSockaddr(address);
}

/** The address of a family that stands for any. */
export function anyAddress(family: number): SocketAddress {
  return { family, port: 0, bytes: new Uint8Array(family === AF_INET ? 4 : 16), scope: 0 };
}

/** Reads a sockaddr; undefined for another family than the two. */
export function readSockaddr(buffer: Buffer): SocketAddress | undefined {
  const family = buffer.readUInt16LE(0);
  const port = buffer.readUInt16BE(2);
  if (family === AF_INET) return { family, port, bytes: buffer.subarray(4, 8), scope: 0 };
  if (family !== AF_INET6) return undefined;
  return { family, port, bytes: buffer.subarray(8, 24), scope: buffer.readUInt32LE(24) };
}

/** A sockaddr with its true length. */
export function sockaddr({ family, port, bytes, scope }: SocketAddress): Buffer {
  const buffer = Buffer.alloc(family === AF_INET ? SOCKADDR_IN_SIZE : SOCKADDR_IN6_SIZE);
  buffer.writeUInt16LE(family, 0);
  buffer.writeUInt16BE(port, 2);
  if (family === AF_INET) buffer.set(bytes.subarray(0, 4), 4);
  else {
    buffer.set(bytes, 8);
    buffer.writeUInt32LE(scope, 24);
  }
  return buffer;
}

/** The words of the images. */
export function addressWords(bytes: Uint8Array): number[] {
  const buffer = Buffer.from(bytes);
  return Array.from({ length: buffer.length / 4 }, (_, index) => buffer.readUInt32LE(index * 4));
}

/** The bytes for words of the images; missing ones are zero. */
export function addressBytes(family: number, words: readonly number[]): Uint8Array {
  const buffer = Buffer.alloc(family === AF_INET ? 4 : 16);
  for (let at = 0; at < buffer.length; at += 4) buffer.writeUInt32LE(words[at / 4] ?? 0, at);
  return buffer;
}

/** Whether it is the address that stands for any (0.0.0.0, ::). */
export function isAny({ bytes }: SocketAddress): boolean {
  return bytes.every((byte) => byte === 0);
}

/** An address as text. IPv4-mapped ones end in the IPv4 form. */
export function endpoint({ family, port, bytes }: SocketAddress): Endpoint {
  if (family === AF_INET) return { family: "ipv4", address: [...bytes].join("."), port };
  if (isMappedBytes(bytes)) {
    return { family: "ipv6", address: `::ffff:${[...bytes.subarray(12)].join(".")}`, port };
  }
  const words = Array.from({ length: 8 }, (_, at) =>
    (((bytes[at * 2] ?? 0) << 8) | (bytes[at * 2 + 1] ?? 0)).toString(16),
  );
  return { family: "ipv6", address: words.join(":"), port };
}

/** The same end for the protocol on the wire: IPv4 for a mapped address. */
export function unmapped(address: SocketAddress): SocketAddress {
  if (address.family === AF_INET || !isMappedBytes(address.bytes)) return address;
  return { family: AF_INET, port: address.port, bytes: address.bytes.subarray(12), scope: 0 };
}

function isMappedBytes(bytes: Uint8Array): boolean {
  return (
    bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff && bytes[11] === 0xff
  );
}
