// Netlink sockets of the engine: requests that are acknowledged, requests that answer with a list ("dumps"), and batches.
// A socket stays in the network namespace that its thread was in when it was made. See netlink(7), include/uapi/linux/netlink.h.

import { RepriseError } from "../errors.ts";
import * as nl from "./abi/netlink.ts";
import { AF_NETLINK, MSG_DONTWAIT, MSG_PEEK, SOCK_CLOEXEC, SOCK_RAW } from "./abi/socket.ts";
import { EAGAIN, errnoName } from "./errno.ts";
import { syscall, syscallError, trySyscall } from "./ffi.ts";
import { setNumber } from "./socket.ts";

/** struct nlmsghdr. */
const HEADER_SIZE = 16;
/** The kernel makes parts of up to 32 KiB when the reader has room for them. */
const PART_SIZE = 64 * 1024;
/** A list that changes while it is read is read again, so often. */
const ATTEMPTS = 5;
const MAIL = Buffer.alloc(1);
/** Where each part is read to; messages are copied out of it. */
const part = Buffer.alloc(PART_SIZE);

export interface NetlinkMessage {
  /** nlmsg_type. */
  readonly type: number;
  /** NLM_F_… besides REQUEST and ACK. */
  readonly flags?: number;
  readonly body: Buffer;
}

export interface NetlinkRequest extends NetlinkMessage {
  /** NETLINK_…: who is asked. */
  readonly protocol: number;
}

export class NetlinkSocket {
  readonly #protocol: number;
  readonly #fd: number;

  /** A socket in the network namespace of the calling thread. @throws RepriseError SYSCALL */
  constructor(protocol: number) {
    this.#protocol = protocol;
    this.#fd = syscall("socket", AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
  }

  /** Has the kernel tell of what happens: RTNLGRP_…, XFRMNLGRP_… of netlink(7). @throws RepriseError SYSCALL */
  join(groups: readonly number[]): void {
    // One without a number of its own counts as the kernel, which is not told of what it does itself.
    const address = Buffer.alloc(nl.SOCKADDR_NL_SIZE);
    address.writeUInt16LE(AF_NETLINK, 0);
    syscall("bind", this.#fd, address, address.length);
    for (const value of groups)
      setNumber(this.#fd, { level: nl.SOL_NETLINK, name: nl.NETLINK_ADD_MEMBERSHIP, value });
  }

  /** Whether the kernel has told something, or could not, as it was too much. */
  hasMail(): boolean {
    return trySyscall("recvfrom", this.#fd, MAIL, 0, MSG_DONTWAIT | MSG_PEEK, 0, 0) !== -EAGAIN;
  }

  /** Bodies of the answers to a request for a list. @throws RepriseError SYSCALL */
  dump(request: NetlinkMessage): Buffer[] {
    return this.dumpMessages(request).map(({ body }) => body);
  }

  /** Whole messages of a list. @throws RepriseError SYSCALL */
  dumpMessages(request: NetlinkMessage): NetlinkMessage[] {
    for (let attempt = 1; ; attempt++) {
      this.#send(encodeMessage(request, nl.NLM_F_REQUEST | nl.NLM_F_DUMP));
      const list = this.#receiveAll(request);
      if (!list.interrupted || attempt === ATTEMPTS) return list.messages;
    }
  }

  /** A list as it came. @throws RepriseError SYSCALL */
  list(request: NetlinkMessage): NetlinkList {
    for (let attempt = 1; ; attempt++) {
      this.#send(encodeMessage(request, nl.NLM_F_REQUEST | nl.NLM_F_DUMP));
      const found = new NetlinkList(this.#receiveParts(request));
      if (!found.isInterrupted || attempt === ATTEMPTS) return found;
    }
  }

  #receiveParts(request: NetlinkMessage): Buffer[] {
    const parts: Buffer[] = [];
    for (;;) {
      const bytes = Buffer.from(this.#receivePart(0));
      parts.push(bytes);
      // Its end is a message of its own, or the last one of a part.
      for (let at = 0; at + HEADER_SIZE <= bytes.length;) {
        const size = bytes.readUInt32LE(at);
        const type = bytes.readUInt16LE(at + 4);
        if (type === nl.NLMSG_DONE) return parts;
        if (type === nl.NLMSG_ERROR)
          throw this.#refused(request, -bytes.readInt32LE(at + HEADER_SIZE));
        if (size < HEADER_SIZE) break;
        at += align(size);
      }
    }
  }

  /** A request that must succeed; what the kernel answered besides its acknowledgement. @throws RepriseError SYSCALL */
  request(request: NetlinkMessage): Buffer[] {
    const answer = this.tryRequest(request);
    if (typeof answer === "number") throw this.#refused(request, -answer);
    return answer;
  }

  /** A request that may fail: the negative error number then. */
  tryRequest(request: NetlinkMessage): Buffer[] | number {
    this.#send(encodeMessage(request, nl.NLM_F_REQUEST | nl.NLM_F_ACK));
    const bodies: Buffer[] = [];
    for (;;) {
      for (const { type, body } of this.#receive(0)) {
        if (type !== nl.NLMSG_ERROR) bodies.push(body);
        else return body.readInt32LE(0) === 0 ? bodies : body.readInt32LE(0);
      }
    }
  }

  /**
   * Messages that the kernel carries out together (nf_tables).
   * @returns the first negative error number, or 0.
   */
  tryBatch(messages: readonly NetlinkMessage[]): number {
    const flags = nl.NLM_F_REQUEST | nl.NLM_F_ACK;
    this.#send(Buffer.concat(messages.map((message) => encodeMessage(message, flags))));
    // All answers are there when the call returns.
    for (let first = 0; ;) {
      const answers = this.#receive(MSG_DONTWAIT);
      if (answers.length === 0) return first;
      for (const { type, body } of answers) {
        if (type === nl.NLMSG_ERROR && first === 0) first = body.readInt32LE(0);
      }
    }
  }

  close(): void {
    trySyscall("close", this.#fd);
  }

  #send(bytes: Buffer): void {
    syscall("sendto", this.#fd, bytes, bytes.length, 0, 0, 0);
  }

  #receiveAll(request: NetlinkMessage): {
    readonly messages: NetlinkMessage[];
    readonly interrupted: boolean;
  } {
    const messages: NetlinkMessage[] = [];
    for (let interrupted = false; ;) {
      for (const message of this.#receive(0)) {
        interrupted ||= ((message.flags ?? 0) & nl.NLM_F_DUMP_INTR) !== 0;
        if (message.type === nl.NLMSG_DONE) return { messages, interrupted };
        if (message.type === nl.NLMSG_ERROR) {
          throw this.#refused(request, -message.body.readInt32LE(0));
        }
        if (message.type !== nl.NLMSG_NOOP) messages.push(message);
      }
    }
  }

  /** One part; nothing when there is none yet and `flags` say not to wait. */
  #receive(flags: number): NetlinkMessage[] {
    return decodeMessages(this.#receivePart(flags));
  }

  #receivePart(flags: number): Buffer {
    const length = trySyscall("recvfrom", this.#fd, part, part.length, flags, 0, 0);
    if (length === -EAGAIN) return part.subarray(0, 0);
    if (length < 0) throw syscallError("recvfrom", -length, "read the kernel's answer by netlink");
    return part.subarray(0, length);
  }

  #refused({ type }: NetlinkMessage, errno: number): RepriseError {
    return new RepriseError(
      "SYSCALL",
      `cannot ask the kernel by netlink (protocol ${this.#protocol}, request ${type}): ${errnoName(errno)}`,
      { syscall: "sendto", errno: errnoName(errno) },
    );
  }
}

/** Asks for a list in the engine's network namespace. @throws RepriseError SYSCALL */
export function netlinkList(request: NetlinkRequest): NetlinkList {
  const socket = new NetlinkSocket(request.protocol);
  try {
    return socket.list(request);
  } finally {
    socket.close();
  }
}

/** A list as the kernel gave it. */
export class NetlinkList {
  readonly #parts: readonly Buffer[];

  constructor(parts: readonly Buffer[]) {
    this.#parts = parts;
  }

  /** A list without anything. */
  static empty(): NetlinkList {
    return new NetlinkList([]);
  }

  /** Whether something changed while it was made. */
  get isInterrupted(): boolean {
    let isInterrupted = false;
    this.#each((bytes, at) => {
      if ((bytes.readUInt16LE(at + 6) & nl.NLM_F_DUMP_INTR) !== 0) isInterrupted = true;
    });
    return isInterrupted;
  }

  /** Whether another list is the same to the byte. One that is the same but for where its parts begin is taken for another. */
  equals(other: NetlinkList): boolean {
    return (
      this.#parts.length === other.#parts.length &&
      this.#parts.every((bytes, index) => bytes.equals(other.#parts[index] as Buffer))
    );
  }

  /** The bodies of its messages: windows. */
  bodies(): Buffer[] {
    const bodies: Buffer[] = [];
    this.#each((bytes, at, size) => {
      const type = bytes.readUInt16LE(at + 4);
      if (type !== nl.NLMSG_DONE && type !== nl.NLMSG_NOOP)
        bodies.push(bytes.subarray(at + HEADER_SIZE, at + size));
    });
    return bodies;
  }

  #each(step: (bytes: Buffer, at: number, size: number) => void): void {
    for (const bytes of this.#parts) {
      for (let at = 0; at + HEADER_SIZE <= bytes.length;) {
        const size = bytes.readUInt32LE(at);
        if (size < HEADER_SIZE || at + size > bytes.length) break;
        step(bytes, at, size);
        at += align(size);
      }
    }
  }
}

/** Messages that lie one behind the other, as in an answer or in CRIU's images. */
export function decodeMessages(bytes: Buffer): NetlinkMessage[] {
  const messages: NetlinkMessage[] = [];
  for (let at = 0; at + HEADER_SIZE <= bytes.length;) {
    const size = bytes.readUInt32LE(at);
    if (size < HEADER_SIZE || at + size > bytes.length) break;
    messages.push({
      type: bytes.readUInt16LE(at + 4),
      flags: bytes.readUInt16LE(at + 6),
      body: Buffer.from(bytes.subarray(at + HEADER_SIZE, at + size)),
    });
    at += align(size);
  }
  return messages;
}

/** A message with its header, padded so that another may follow. */
export function encodeMessage({ type, flags = 0, body }: NetlinkMessage, more = 0): Buffer {
  const bytes = Buffer.alloc(HEADER_SIZE + align(body.length));
  bytes.writeUInt32LE(HEADER_SIZE + body.length, 0);
  bytes.writeUInt16LE(type, 4);
  bytes.writeUInt16LE(flags | more, 6);
  body.copy(bytes, HEADER_SIZE);
  return bytes;
}

/** Attributes behind the fixed part of an answer, by their type. */
export function attributes(body: Buffer, fixedSize: number): Map<number, Buffer> {
  const found = new Map<number, Buffer>();
  eachAttribute(body, fixedSize, (type, start, end) => found.set(type, body.subarray(start, end)));
  return found;
}

/** Goes through the attributes behind the fixed part of an answer: type, and where the content begins and ends. */
export function eachAttribute(
  body: Buffer,
  fixedSize: number,
  step: (type: number, start: number, end: number) => void,
): void {
  for (let at = align(fixedSize); at + 4 <= body.length;) {
    const length = body.readUInt16LE(at);
    if (length < 4 || at + length > body.length) break;
    step(body.readUInt16LE(at + 2) & nl.NLA_TYPE_MASK, at + 4, at + length);
    at += align(length);
  }
}

/** What is in the attributes of a list, in which all may be of one type. */
export function attributeList(list: Buffer): Buffer[] {
  const found: Buffer[] = [];
  for (let at = 0; at + 4 <= list.length;) {
    const length = list.readUInt16LE(at);
    if (length < 4 || at + length > list.length) break;
    found.push(list.subarray(at + 4, at + length));
    at += align(length);
  }
  return found;
}

/** What an attribute holds: bytes, text with its zero, or further attributes. */
export type AttributeValue = Uint8Array | string | readonly Buffer[];

/** One attribute, padded. */
export function attribute(type: number, value: AttributeValue): Buffer {
  const nested = Array.isArray(value);
  const payload = bytesOf(value);
  const bytes = Buffer.alloc(4 + align(payload.length));
  bytes.writeUInt16LE(4 + payload.length, 0);
  bytes.writeUInt16LE(nested ? type | nl.NLA_F_NESTED : type, 2);
  bytes.set(payload, 4);
  return bytes;
}

/** A 32-bit word in this machine's order. */
export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes;
}

/** A 32-bit word in network order, which netfilter uses. */
export function be32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}

function bytesOf(value: AttributeValue): Uint8Array {
  if (typeof value === "string") return Buffer.from(`${value}\0`);
  return value instanceof Uint8Array ? value : Buffer.concat(value);
}

function align(length: number): number {
  return Math.ceil(length / 4) * 4;
}
