// A description that can be made only when the tree stands, and that several descriptors have in common: until then they are a socket,
// into which it is sent, and every holder takes it by a look at the message (MSG_PEEK), which is there for the next one still.

import { O_CLOEXEC } from "../../sys/abi/fcntl.ts";
import { POLLIN } from "../../sys/abi/poll.ts";
import {
  AF_UNIX,
  MSG_PEEK,
  SCM_RIGHTS,
  SOCK_CLOEXEC,
  SOCK_SEQPACKET,
  SOL_SOCKET,
} from "../../sys/abi/socket.ts";
import type { Argument, Pointer, Program, Ref } from "../../tracee/program.ts";
import type { FilesRestore } from "./file-kind.ts";

export interface Carrier {
  /** What the holders have until they take what is sent. */
  readonly fd: Argument;
  /** Reserved number of the end that it is sent into. */
  readonly sender: number;
}

/** Adds the calls that make the socket. */
export function makeCarrier(program: Program, what: string, restore: FilesRestore): Carrier {
  const label = { label: `make a way for ${what}` };
  const ends = program.output(8);
  program.call("socketpair", [AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends], label);
  const end = (offset: number): Argument => ({
    kind: "load",
    from: { ...ends, offset: ends.offset + offset },
    width: 4,
  });
  const sender = restore.reserve();
  program.call("dup3", [end(4), sender, O_CLOEXEC], label);
  program.call("close", [end(4)]);
  return { fd: end(0), sender };
}

/** Adds the call that sends a descriptor of the task that runs the program. */
export function sendCarried(
  program: Program,
  { sender, fd }: { readonly sender: number; readonly fd: Ref },
  label: string,
): void {
  const control = Buffer.alloc(CMSG_SIZE);
  control.writeUInt32LE(CMSG_LENGTH, 0);
  control.writeInt32LE(SOL_SOCKET, 8);
  control.writeInt32LE(SCM_RIGHTS, 12);
  const rights = program.data(control);
  program.copy(fd, { ...rights, offset: rights.offset + 16 });
  program.call("sendmsg", [sender, message(program, rights, program.data(Buffer.alloc(1))), 0], {
    label,
    expect: 1,
  });
}

/** Adds the call that waits for what another task sends, at the same time. */
export function waitCarried(program: Program, fd: number, label: string): void {
  const pollfd = Buffer.alloc(8);
  pollfd.writeInt32LE(fd, 0);
  pollfd.writeInt16LE(POLLIN, 4);
  const time = Buffer.alloc(16);
  time.writeBigInt64LE(PATIENCE_SECONDS, 0);
  // Of those who wait in recvmsg itself one would be woken, and leave the others asleep: it takes nothing out.
  program.call("ppoll", [program.data(pollfd), 1, program.data(time), 0, 0], {
    label,
    expect: 1,
    hint: "The task that should have opened it did not.",
  });
}

/** The other task may have failed. */
const PATIENCE_SECONDS = 20n;

/** Adds the call that takes what has been sent. */
export function takeCarried(program: Program, fd: number, label: string): Argument {
  const control = program.output(CMSG_SIZE, 8);
  program.call("recvmsg", [fd, message(program, control, program.output(1)), MSG_PEEK], {
    label,
    expect: 1,
  });
  return { kind: "load", from: { ...control, offset: control.offset + 16 }, width: 4 };
}

/** struct msghdr with one byte of data, and with room for one descriptor. */
function message(program: Program, control: Pointer, byte: Pointer): Pointer {
  const vector = Buffer.alloc(16);
  vector.writeUInt32LE(1, 8);
  const header = Buffer.alloc(56);
  header.writeUInt32LE(1, 24);
  header.writeUInt32LE(CMSG_SIZE, 40);
  return program.structure(header, { 16: program.structure(vector, { 0: byte }), 32: control });
}

/** Header and one descriptor of a control message; the length that the header tells is not rounded up. */
const CMSG_SIZE = 24;
const CMSG_LENGTH = 20;

/** By restore: how many descriptors there are of each file. */
const holders = new WeakMap<FilesRestore["set"], Map<number, number>>();

/** Whether several descriptors are of one file, or will be. */
export function isHeldTwice(id: number, { set }: FilesRestore): boolean {
  let counts = holders.get(set);
  if (counts === undefined) {
    holders.set(set, (counts = new Map()));
    for (const { live } of set.tasks.values())
      for (const one of live?.fdinfo ?? []) counts.set(one.id, (counts.get(one.id) ?? 0) + 1);
    // What is in flight will have holders.
    for (const { value } of set.skQueues)
      for (const right of value.scm.flatMap(({ rights }) => rights)) counts.set(right, Infinity);
  }
  return (counts.get(id) ?? 0) > 1;
}
