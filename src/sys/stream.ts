// Blocking stream sockets of this process: connect, listen, and whole reads and writes. The page server talks this way on
// purpose: tasks stand still meanwhile, and there is nothing else to do. See tcp(7), send(2).

import { RepriseError } from "../errors.ts";
import {
  AF_INET,
  AF_INET6,
  AF_UNIX,
  MSG_NOSIGNAL,
  SO_ACCEPTCONN,
  SO_REUSEADDR,
  SOCK_CLOEXEC,
  SOCK_STREAM,
  SOL_SOCKET,
} from "./abi/socket.ts";
import { EINTR, errnoName } from "./errno.ts";
import { addressOf, syscall, trySyscall } from "./ffi.ts";
import { getNumber, setNumber } from "./socket.ts";

/** An internet address in text and a port. */
export interface StreamAddress {
  readonly address: string;
  readonly port: number;
}

const MSG_WAITALL = 0x100;
const MSG_MORE = 0x8000;
const IPPROTO_TCP = 6;
const TCP_NODELAY = 1;
const BACKLOG = 16;

/** Connects by TCP, without delay of small messages. @throws RepriseError SYSCALL, BAD_ARGUMENT */
export function connectTcp(to: StreamAddress): number {
  const { family, name } = socketName(to);
  const fd = syscall("socket", family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const result = trySyscall("connect", fd, name, name.length);
  if (result < 0) {
    trySyscall("close", fd);
    throw new RepriseError(
      "SYSCALL",
      `cannot connect to ${to.address} port ${to.port}: connect: ${errnoName(-result)}`,
      { syscall: "connect", errno: errnoName(-result), hint: "Is the page server running there?" },
    );
  }
  noDelay(fd);
  return fd;
}

/** Listens for TCP; port 0 is any free one. @throws RepriseError SYSCALL, BAD_ARGUMENT */
export function listenTcp(at: StreamAddress): { readonly fd: number; readonly port: number } {
  const { family, name } = socketName(at);
  const fd = syscall("socket", family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  try {
    setNumber(fd, { level: SOL_SOCKET, name: SO_REUSEADDR, value: 1 });
    const result = trySyscall("bind", fd, name, name.length);
    if (result < 0) {
      throw new RepriseError(
        "SYSCALL",
        `cannot listen at ${at.address} port ${at.port}: bind: ${errnoName(-result)}`,
        {
          syscall: "bind",
          errno: errnoName(-result),
          hint: "Choose another --port, or --address.",
        },
      );
    }
    syscall("listen", fd, BACKLOG);
    const bound = Buffer.alloc(28);
    const length = Buffer.from([bound.length, 0, 0, 0]);
    syscall("getsockname", fd, bound, length);
    return { fd, port: bound.readUInt16BE(2) };
  } catch (error) {
    trySyscall("close", fd);
    throw error;
  }
}

/** Connects to a unix socket by its path. @throws RepriseError SYSCALL */
export function connectUnix(path: string): number {
  const fd = syscall("socket", AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const name = unixName(path);
  const result = trySyscall("connect", fd, name, name.length);
  if (result >= 0) return fd;
  trySyscall("close", fd);
  throw new RepriseError("SYSCALL", `cannot connect to ${path}: connect: ${errnoName(-result)}`, {
    syscall: "connect",
    errno: errnoName(-result),
  });
}

/** Listens at a path, which must be free. @throws RepriseError SYSCALL */
export function listenUnix(path: string): number {
  const fd = syscall("socket", AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  try {
    const name = unixName(path);
    syscall("bind", fd, name, name.length);
    syscall("listen", fd, BACKLOG);
    return fd;
  } catch (error) {
    trySyscall("close", fd);
    throw error;
  }
}

/** Waits for a connection. @throws RepriseError SYSCALL */
export function accept(listener: number): number {
  return retried(() => trySyscall("accept4", listener, 0, 0, SOCK_CLOEXEC), "accept4");
}

/** Whether a socket listens, instead of being a connection. */
export function isListening(fd: number): boolean {
  return getNumber(fd, SOL_SOCKET, SO_ACCEPTCONN) !== 0;
}

/** Small messages go out at once. No effect on other sockets than those of TCP. */
export function noDelay(fd: number): void {
  const on = Buffer.from([1, 0, 0, 0]);
  trySyscall("setsockopt", fd, IPPROTO_TCP, TCP_NODELAY, on, on.length);
}

/**
 * Fills a buffer. @returns false when the other side has closed before the first byte.
 * @throws RepriseError SYSCALL, also for an end in the middle
 */
export function receiveAll(fd: number, into: Buffer): boolean {
  for (let done = 0; done < into.length;) {
    const at = addressOf(into) + done;
    const left = into.length - done;
    const got = retried(() => trySyscall("recvfrom", fd, at, left, MSG_WAITALL, 0, 0), "recvfrom");
    if (got === 0) {
      if (done === 0) return false;
      throw new RepriseError("SYSCALL", "the connection was closed in the middle of a message");
    }
    done += got;
  }
  return true;
}

/** Sends a whole buffer; `more` says that another one follows. @throws RepriseError SYSCALL */
export function sendAll(
  fd: number,
  bytes: Buffer,
  options: { readonly more?: boolean } = {},
): void {
  const flags = MSG_NOSIGNAL | (options.more === true ? MSG_MORE : 0);
  for (let done = 0; done < bytes.length;) {
    const at = addressOf(bytes) + done;
    const left = bytes.length - done;
    done += retried(() => trySyscall("sendto", fd, at, left, flags, 0, 0), "sendto");
  }
}

function retried(call: () => number, name: "accept4" | "recvfrom" | "sendto"): number {
  for (;;) {
    const result = call();
    if (result >= 0) return result;
    if (result === -EINTR) continue;
    throw new RepriseError("SYSCALL", `the connection failed: ${name}: ${errnoName(-result)}`, {
      syscall: name,
      errno: errnoName(-result),
    });
  }
}

function socketName({ address, port }: StreamAddress): { family: number; name: Buffer } {
  // Loaded here: that takes 2 ms, and few runs have a connection of their own.
  const { isIPv4, isIPv6 } = process.getBuiltinModule("node:net");
  if (isIPv4(address)) {
    const name = Buffer.alloc(16);
    name.writeUInt16LE(AF_INET, 0);
    name.writeUInt16BE(port, 2);
    name.set(address.split(".").map(Number), 4);
    return { family: AF_INET, name };
  }
  if (!isIPv6(address)) {
    throw new RepriseError(
      "BAD_ARGUMENT",
      `cannot use the address ${address}: it is no IP address`,
      {
        hint: "Give an IPv4 or IPv6 address; names are not looked up.",
      },
    );
  }
  const name = Buffer.alloc(28);
  name.writeUInt16LE(AF_INET6, 0);
  name.writeUInt16BE(port, 2);
  name.set(ipv6Bytes(address), 8);
  return { family: AF_INET6, name };
}

/** The 16 bytes of an IPv6 address that `isIPv6` accepts. */
function ipv6Bytes(text: string): Uint8Array {
  const dotted = /^(.*:)(\d+)\.(\d+)\.(\d+)\.(\d+)$/.exec(text);
  const [, head = "", ...quad] = dotted ?? [];
  const [a = 0, b = 0, c = 0, d = 0] = quad.map(Number);
  const plain =
    dotted === null ? text : `${head}${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`;
  const [left = "", right] = plain.replace(/%.*/, "").split("::");
  const words = (part: string): number[] =>
    part === "" ? [] : part.split(":").map((word) => parseInt(word, 16));
  const front = words(left);
  const back = words(right ?? "");
  const all = [...front, ...Array<number>(8 - front.length - back.length).fill(0), ...back];
  const bytes = Buffer.alloc(16);
  all.forEach((word, index) => bytes.writeUInt16BE(word, index * 2));
  return bytes;
}

function unixName(path: string): Buffer {
  const bytes = Buffer.from(path);
  const name = Buffer.alloc(2 + bytes.length + 1);
  name.writeUInt16LE(AF_UNIX, 0);
  bytes.copy(name, 2);
  return name;
}
