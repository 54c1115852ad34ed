// Netlink requests to the kernel that answer with a list ("dumps"). See netlink(7), include/uapi/linux/netlink.h.

import { RepriseError } from "../errors.ts";
import * as nl from "./abi/netlink.ts";
import { AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW } from "./abi/socket.ts";
import { errnoName } from "./errno.ts";
import { syscall, trySyscall } from "./ffi.ts";

/** struct nlmsghdr. */
const HEADER_SIZE = 16;
/** The kernel makes parts of up to 32 KiB when the reader has room for them. */
const PART_SIZE = 64 * 1024;
/** A list that changes while it is read is read again, so often. */
const ATTEMPTS = 5;

export interface NetlinkRequest {
  /** NETLINK_…: who is asked. */
  readonly protocol: number;
  /** nlmsg_type of the request. */
  readonly type: number;
  readonly body: Buffer;
}

/**
 * Asks for a list in the engine's network namespace; the bodies of the answers.
 * @throws RepriseError SYSCALL
 */
export function netlinkDump(request: NetlinkRequest): Buffer[] {
  const fd = syscall("socket", AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, request.protocol);
  try {
    for (let attempt = 1; ; attempt++) {
      syscall("sendto", fd, encode(request), HEADER_SIZE + request.body.length, 0, 0, 0);
      const list = receiveAll(fd, request);
      if (!list.interrupted || attempt === ATTEMPTS) return list.bodies;
    }
  } finally {
    trySyscall("close", fd);
  }
}

/** Attributes behind the fixed part of an answer, by their type. */
export function attributes(body: Buffer, fixedSize: number): Map<number, Buffer> {
  const found = new Map<number, Buffer>();
  for (let at = align(fixedSize); at + 4 <= body.length;) {
    const length = body.readUInt16LE(at);
    if (length < 4 || at + length > body.length) break;
    found.set(body.readUInt16LE(at + 2) & nl.NLA_TYPE_MASK, body.subarray(at + 4, at + length));
    at += align(length);
  }
  return found;
}

function encode({ type, body }: NetlinkRequest): Buffer {
  const header = Buffer.alloc(HEADER_SIZE);
  header.writeUInt32LE(HEADER_SIZE + body.length, 0);
  header.writeUInt16LE(type, 4);
  header.writeUInt16LE(nl.NLM_F_REQUEST | nl.NLM_F_DUMP, 6);
  return Buffer.concat([header, body]);
}

function receiveAll(
  fd: number,
  request: NetlinkRequest,
): { readonly bodies: Buffer[]; readonly interrupted: boolean } {
  const bodies: Buffer[] = [];
  let interrupted = false;
  const part = Buffer.alloc(PART_SIZE);
  for (;;) {
    const length = syscall("recvfrom", fd, part, part.length, 0, 0, 0);
    for (let at = 0; at + HEADER_SIZE <= length;) {
      const size = part.readUInt32LE(at);
      const type = part.readUInt16LE(at + 4);
      const body = part.subarray(at + HEADER_SIZE, at + size);
      interrupted ||= (part.readUInt16LE(at + 6) & nl.NLM_F_DUMP_INTR) !== 0;
      if (type === nl.NLMSG_DONE) return { bodies, interrupted };
      if (type === nl.NLMSG_ERROR) throw refused(request, -body.readInt32LE(0));
      if (type !== nl.NLMSG_NOOP) bodies.push(Buffer.from(body));
      at += align(size);
    }
  }
}

function refused({ protocol, type }: NetlinkRequest, errno: number): RepriseError {
  return new RepriseError(
    "SYSCALL",
    `cannot ask the kernel by netlink (protocol ${protocol}, request ${type}): ${errnoName(errno)}`,
    { syscall: "sendto", errno: errnoName(errno) },
  );
}

function align(length: number): number {
  return Math.ceil(length / 4) * 4;
}
