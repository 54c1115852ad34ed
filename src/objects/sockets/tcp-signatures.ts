// Keys by which TCP segments are signed (TCP_MD5SIG, tcp(7), RFC 2385), as BGP routers have them. A socket does not tell its own
// keys; the diagnosis of sockets tells them to CAP_NET_ADMIN (INET_DIAG_MD5SIG). They take memory that is counted as the socket's
// options, so one getsockopt tells that a socket has none. At restore they are there before the connection is, whose header has
// the signature in its length. A key for one virtual routing device alone (TCP_MD5SIG_FLAG_IFINDEX) shows as one for all.

import type { RepriseSignatureKey } from "../../images/schema/messages.generated.ts";
import { readTcpKeys } from "../../proc/sock-diag.ts";
import {
  SOL_TCP,
  TCP_MD5SIG_EXT,
  TCP_MD5SIG_FLAG_PREFIX,
  TCP_MD5SIG_MAXKEYLEN,
} from "../../sys/abi/inet.ts";
import { AF_INET6, SK_MEMINFO_OPTMEM, SO_MEMINFO, SOL_SOCKET } from "../../sys/abi/socket.ts";
import { trySyscall } from "../../sys/ffi.ts";
import { getOption } from "../../sys/socket.ts";
import { sockaddr } from "./inet-address.ts";
import type { SocketNamespace } from "./socket-namespace.ts";

/** Words of SO_MEMINFO up to the one that is of interest. */
export const MEMINFO_SIZE = (SK_MEMINFO_OPTMEM + 1) * 4;

/** Bytes that a socket holds for options and filters beyond its own structure; 0 when the kernel does not tell. */
export function optionMemory(fd: number): number {
  const words = getOption(fd, { level: SOL_SOCKET, name: SO_MEMINFO, size: MEMINFO_SIZE });
  return typeof words === "number" || words.length < MEMINFO_SIZE
    ? 0
    : words.readUInt32LE(SK_MEMINFO_OPTMEM * 4);
}

/** The TCP socket whose keys are asked for. */
export interface KeyHolder {
  readonly family: number;
  readonly inode: number;
  /** 0 for one that nobody can find. */
  readonly port: number;
  readonly place: SocketNamespace;
}

/** Keys of a socket with option memory. @throws RepriseError SYSCALL */
export function readKeys({ family, inode, port, place }: KeyHolder): RepriseSignatureKey[] {
  if (port === 0) return [];
  const found = place.inside(() => readTcpKeys(family, port)).get(inode) ?? [];
  return found.map(({ family: of, prefix, address, key }) => ({
    family: of,
    prefix,
    address: Uint8Array.from(address),
    key: Uint8Array.from(key),
  }));
}

/** struct tcp_md5sig: behind the room for an address come flags, length of the prefix, length of the key, device, key. */
const ADDRESS_ROOM = 128;
const KEY_AT = ADDRESS_ROOM + 8;
const MD5SIG_SIZE = KEY_AT + TCP_MD5SIG_MAXKEYLEN;

/**
 * Gives a socket a key, or with `isGone` takes it away.
 * @returns 0, or the negative error number
 */
export function setKey(
  fd: number,
  { family, prefix, address, key }: RepriseSignatureKey,
  options: { readonly socketFamily: number; readonly isGone?: boolean },
): number {
  const argument = Buffer.alloc(MD5SIG_SIZE);
  const mapped = options.socketFamily === AF_INET6 && family !== AF_INET6;
  const bytes = mapped ? Buffer.concat([MAPPED, address]) : address;
  const length = options.isGone === true ? 0 : Math.min(key.length, TCP_MD5SIG_MAXKEYLEN);
  sockaddr({ family: options.socketFamily, port: 0, bytes, scope: 0 }).copy(argument);
  argument.writeUInt8(TCP_MD5SIG_FLAG_PREFIX, ADDRESS_ROOM);
  argument.writeUInt8(prefix, ADDRESS_ROOM + 1);
  argument.writeUInt16LE(length, ADDRESS_ROOM + 2);
  argument.set(key.subarray(0, length), KEY_AT);
  return trySyscall("setsockopt", fd, SOL_TCP, TCP_MD5SIG_EXT, argument, argument.length);
}

/** The beginning of an IPv6 address that stands for one of IPv4: ::ffff:0:0/96. */
const MAPPED = Buffer.from("00000000000000000000ffff", "hex");
