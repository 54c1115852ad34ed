// Socket calls in this process, on sockets of our own or copies of other processes' (pidfd_getfd). See socket(7), cmsg(3).

import { SOCK_CLOEXEC, SOL_SOCKET, SO_DOMAIN, MSG_CMSG_CLOEXEC } from "./abi/socket.ts";
import { addressOf, syscall, syscallError, trySyscall } from "./ffi.ts";
import { writeU64, IOVEC_SIZE } from "./memory.ts";

/** Both ends, close-on-exec. @throws RepriseError SYSCALL */
export function socketPair(family: number, type: number): [number, number] {
  const ends = Buffer.alloc(8);
  syscall("socketpair", family, type | SOCK_CLOEXEC, 0, ends);
  return [ends.readInt32LE(0), ends.readInt32LE(4)];
}

/** An option, and the most bytes that its value may have. */
export interface AskedOption {
  readonly level: number;
  readonly name: number;
  readonly size: number;
}

/** Somebody who has asked a socket for many options at once. */
export interface OptionSource {
  /** The value, which may be overwritten later, or the negative error number; undefined for an option that was not asked for. */
  find(option: AskedOption): Buffer | number | undefined;
}

/** Whose options are known, and who knows them. */
let answered: { readonly fd: number; readonly source: OptionSource } | undefined;

/** Runs a step in which no option of this socket changes: what `source` knows of it is not asked again. */
export function withKnownOptions<T>(fd: number, source: OptionSource, step: () => T): T {
  const before = answered;
  answered = { fd, source };
  try {
    return step();
  } finally {
    answered = before;
  }
}

/** An option as bytes, at most `size` of them; or the negative error number. */
export function getOption(fd: number, option: AskedOption): Buffer | number {
  const known = answered?.fd === fd ? answered.source.find(option) : undefined;
  if (known !== undefined) return typeof known === "number" ? known : Buffer.from(known);
  const value = Buffer.alloc(option.size);
  LENGTH.writeInt32LE(option.size);
  const result = trySyscall("getsockopt", fd, option.level, option.name, value, LENGTH);
  return result < 0 ? result : value.subarray(0, LENGTH.readInt32LE(0));
}

/** In and out argument of getsockopt: a dump asks for tens of options of each socket. */
const LENGTH = Buffer.alloc(4);

/** An option that is an int. @throws RepriseError SYSCALL */
export function getNumber(fd: number, level: number, name: number): number {
  const option = { level, name, size: 4 };
  const known = answered?.fd === fd ? answered.source.find(option) : undefined;
  const value = known ?? getOption(fd, option);
  if (typeof value === "number") {
    throw syscallError("getsockopt", -value, `read socket option ${level}:${name}`);
  }
  return value.readInt32LE(0);
}

/** Sets an option that is an int. @throws RepriseError SYSCALL */
export function setNumber(
  fd: number,
  option: { readonly level: number; readonly name: number; readonly value: number },
): void {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32LE(option.value);
  syscall("setsockopt", fd, option.level, option.name, bytes, 4);
}

/** AF_… of a socket. @throws RepriseError SYSCALL */
export function socketFamily(fd: number): number {
  return getNumber(fd, SOL_SOCKET, SO_DOMAIN);
}

/** A control message. */
export interface ControlMessage {
  readonly level: number;
  readonly type: number;
  readonly data: Buffer;
}

export interface ReceivedMessage {
  /** With MSG_TRUNC among the flags, the whole length of a datagram. */
  readonly length: number;
  readonly data: Buffer;
  readonly control: readonly ControlMessage[];
  /** Address of the sender, as struct sockaddr without its unused end; empty when it has none. */
  readonly name: Buffer;
  /** MSG_… that the kernel set. */
  readonly flags: number;
}

/** Offsets in struct msghdr. */
const MSGHDR_SIZE = 56;
const MSG_NAME = 0;
const MSG_NAMELEN = 8;
const MSG_IOV = 16;
const MSG_IOVLEN = 24;
const MSG_CONTROL = 32;
const MSG_CONTROLLEN = 40;
const MSG_FLAGS = 48;
const CMSG_HEADER = 16;
const NAME_SIZE = 128;
/** Room for SCM_MAX_FD descriptors and what else the kernel may add. */
const CONTROL_SIZE = 2048;

/** recvmsg into `into`; received descriptors are close-on-exec. Gives the negative error number when it fails. */
export function receiveMessage(fd: number, into: Buffer, flags: number): ReceivedMessage | number {
  const { name, control, iov, header } = (receiving ??= receivingBuffers());
  writeU64(iov, 0, into.length === 0 ? 0 : addressOf(into));
  writeU64(iov, 8, into.length);
  header.writeUInt32LE(name.length, MSG_NAMELEN);
  writeU64(header, MSG_CONTROLLEN, control.length);
  const length = trySyscall("recvmsg", fd, header, flags | MSG_CMSG_CLOEXEC);
  if (length < 0) return length;
  return {
    length,
    data: into.subarray(0, Math.min(length, into.length)),
    control: controlMessages(control.subarray(0, header.readUInt32LE(MSG_CONTROLLEN))),
    name: Buffer.from(name.subarray(0, header.readUInt32LE(MSG_NAMELEN))),
    flags: header.readUInt32LE(MSG_FLAGS),
  };
}

/** What a message comes with; one for all, since the queues of thousands of sockets may be looked into. */
let receiving: ReturnType<typeof receivingBuffers> | undefined;

function receivingBuffers(): Record<"name" | "control" | "iov" | "header", Buffer> {
  const [name, control] = [Buffer.alloc(NAME_SIZE), Buffer.alloc(CONTROL_SIZE)];
  const { header, iov } = messageHeader(name);
  writeU64(header, MSG_NAME, addressOf(name));
  writeU64(header, MSG_CONTROL, addressOf(control));
  return { name, control, iov, header };
}

/**
 * recvmsg with room for `into` and one byte more, which cannot be written: of a stream, the kernel then gives the messages that fit
 * whole into `into`.
 *
 * @returns their bytes, or the negative error number: EFAULT when not even the first one fits.
 */
export function receiveWholeMessages(fd: number, into: Buffer, flags: number): number {
  const iov = Buffer.alloc(2 * IOVEC_SIZE);
  writeU64(iov, 0, into.length === 0 ? UNMAPPED : addressOf(into));
  writeU64(iov, 8, into.length);
  writeU64(iov, IOVEC_SIZE, UNMAPPED);
  writeU64(iov, IOVEC_SIZE + 8, 1);
  const header = Buffer.alloc(MSGHDR_SIZE);
  writeU64(header, MSG_IOV, addressOf(iov));
  writeU64(header, MSG_IOVLEN, 2);
  return trySyscall("recvmsg", fd, header, flags);
}

/** In the first page, where nothing is ever mapped. */
const UNMAPPED = 1;

/** sendmsg; `control` as encodeControl makes it. @returns bytes sent, or the negative error number. */
export function sendMessage(
  fd: number,
  data: Buffer,
  options: { readonly flags?: number; readonly control?: Buffer } = {},
): number {
  const { header, iov } = messageHeader(data);
  const { control = Buffer.alloc(0) } = options;
  if (control.length > 0) writeU64(header, MSG_CONTROL, addressOf(control));
  writeU64(header, MSG_CONTROLLEN, control.length);
  const sent = trySyscall("sendmsg", fd, header, options.flags ?? 0);
  return iov.length === 0 ? -1 : sent;
}

/** One control message as it lies in memory. */
export function encodeControl({ level, type, data }: ControlMessage): Buffer {
  const bytes = Buffer.alloc(CMSG_HEADER + align(data.length));
  writeU64(bytes, 0, CMSG_HEADER + data.length);
  bytes.writeInt32LE(level, 8);
  bytes.writeInt32LE(type, 12);
  data.copy(bytes, CMSG_HEADER);
  return bytes;
}

function messageHeader(data: Buffer): { header: Buffer; iov: Buffer } {
  const iov = Buffer.alloc(IOVEC_SIZE);
  writeU64(iov, 0, data.length === 0 ? 0 : addressOf(data));
  writeU64(iov, 8, data.length);
  const header = Buffer.alloc(MSGHDR_SIZE);
  writeU64(header, MSG_IOV, addressOf(iov));
  writeU64(header, MSG_IOVLEN, 1);
  return { header, iov };
}

function controlMessages(bytes: Buffer): ControlMessage[] {
  const found: ControlMessage[] = [];
  for (let at = 0; at + CMSG_HEADER <= bytes.length;) {
    const length = bytes.readUInt32LE(at);
    if (length < CMSG_HEADER) break;
    found.push({
      level: bytes.readInt32LE(at + 8),
      type: bytes.readInt32LE(at + 12),
      data: Buffer.from(bytes.subarray(at + CMSG_HEADER, at + length)),
    });
    at += align(length);
  }
  return found;
}

function align(length: number): number {
  return Math.ceil(length / 8) * 8;
}
