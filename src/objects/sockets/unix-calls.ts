// The calls that make unix sockets, for the program of unix-restore.ts: each socket lies at a reserved number, is made in its network
// namespace, and sees the users that it saw.

import type { Stats } from "node:fs";
import { RepriseError } from "../../errors.ts";
import type { UnixSkEntry } from "../../images/schema/messages.generated.ts";
import { deviceMajor, deviceMinor } from "../../proc/links.ts";
import { readUnixSockets } from "../../proc/sock-diag.ts";
import { F_SETFL, O_CLOEXEC, O_NONBLOCK } from "../../sys/abi/fcntl.ts";
import * as so from "../../sys/abi/socket.ts";
import type { Argument, Program } from "../../tracee/program.ts";
import type { FilesRestore } from "../files/file-kind.ts";
import { restoreOwner } from "../files/owner.ts";
import { restoreFurtherOptions } from "./further-options.ts";
import { inSocketNamespace } from "./socket-namespace.ts";
import { hasUsualBuffers, restoreOptions, restoreReuse } from "./socket-options.ts";
import { asUser, giveSocket, type UserIds } from "./socket-users.ts";
import { addressOfName, isPath, NameBinder, showName } from "./unix-name.ts";
import { what } from "./unix-relations.ts";

/** A socket of the program. */
export interface MadeSocket {
  readonly entry: UnixSkEntry;
  /** Reserved numbers: the socket itself, */
  readonly fd: number;
  /** its file, when its name does not lead there, */
  readonly file?: number | undefined;
  /** and who sends what waits in it, when no other socket can. Closed in the end. */
  readonly helper?: number | undefined;
}

export class UnixCalls {
  readonly names: NameBinder;
  readonly #restore: FilesRestore;

  constructor(restore: FilesRestore) {
    this.#restore = restore;
    this.names = new NameBinder(restore, usedFiles());
  }

  /** Gives a socket what may make it impossible to connect it or to fill its queue. */
  finish(program: Program, { entry, fd }: MadeSocket): void {
    const kind = { family: so.AF_UNIX, type: entry.type, proto: 0 };
    // Where something was put into queues, senders were allowed to send more than their buffers take.
    const hasBuffers = this.#restore.set.skQueues.length === 0 && hasUsualBuffers(entry.opts, kind);
    const socket = { fd, what: what(entry), hasBuffers };
    giveSocket(program, fd, socketUser(entry));
    restoreReuse(program, entry.opts, socket);
    restoreOptions(program, entry.opts, socket);
    restoreFurtherOptions(program, entry.reprise?.options ?? [], socket);
    restoreOwner(program, entry.fown, fd);
    if (entry.state === so.TCP_LISTEN) {
      asUser(program, peerUser(entry), () =>
        program.call("listen", [fd, entry.backlog], { label: `set the backlog of ${what(entry)}` }),
      );
    }
    const shutdown = entry.shutdown ?? 0;
    if (shutdown !== 0) {
      program.call("shutdown", [fd, shutdown - 1], { label: `shut ${what(entry)} down` });
    }
    program.call("fcntl", [fd, F_SETFL, entry.flags & O_NONBLOCK], {
      label: `set the flags of ${what(entry)}`,
    });
  }

  connect(
    program: Program,
    {
      fd,
      entry,
      to,
    }: { readonly fd: number; readonly entry: UnixSkEntry; readonly to: MadeSocket },
  ): void {
    if (to.entry.name.length === 0) {
      throw refusedUnix(entry, `its peer, socket ${to.entry.ino}, has no name to connect to`);
    }
    this.#restore.inMountsOf(program, to.entry.mnt_id);
    const address = this.addressOf(to);
    program.call("connect", [fd, program.data(address), address.length], {
      label: `connect ${what(entry)} to ${showName(to.entry.name)}`,
      hint: "Nobody may be bound to that name.",
    });
  }

  /** The address by which a socket is found. */
  addressOf({ entry, file }: MadeSocket): Buffer {
    const byFile = isPath(entry) && file !== undefined;
    return addressOfName(byFile ? Buffer.from(`/proc/self/fd/${file}\0`) : entry.name);
  }

  /** Gives a socket its name. @returns a descriptor of its file, where the name does not lead there */
  bind(
    program: Program,
    { entry, fd }: { readonly entry: UnixSkEntry; readonly fd: number },
  ): number | undefined {
    if (entry.name.length === 0) return undefined;
    return this.names.bind(program, { fd, entry, what: what(entry) });
  }

  socket(program: Program, entry: UnixSkEntry): number {
    const fd = this.#inNamespace(program, entry, () =>
      program.call("socket", [so.AF_UNIX, entry.type | so.SOCK_CLOEXEC, 0], {
        label: `make ${what(entry)}`,
      }),
    );
    return this.keep(program, fd);
  }

  /** Both ends see who makes them. Where they saw different ones (their listener is gone), that must not be root. */
  pair(
    program: Program,
    { entry, peer }: { readonly entry: UnixSkEntry; readonly peer?: UnixSkEntry | undefined },
  ): [number, number] {
    const user = peerUser(entry) ?? (peer === undefined ? undefined : peerUser(peer));
    const ends = program.output(8);
    this.#inNamespace(program, entry, () =>
      asUser(program, user, () =>
        program.call("socketpair", [so.AF_UNIX, entry.type | so.SOCK_CLOEXEC, 0, ends], {
          label: `make ${what(entry)} and its peer`,
        }),
      ),
    );
    const end = (index: number): Argument => ({
      kind: "load",
      from: { ...ends, offset: ends.offset + index * 4 },
      width: 4,
    });
    return [this.keep(program, end(0)), this.keep(program, end(1))];
  }

  #inNamespace<T>(program: Program, entry: UnixSkEntry, step: () => T): T {
    return inSocketNamespace(program, { id: entry.ns_id, restore: this.#restore }, step);
  }

  /** Moves a descriptor to a reserved number. */
  keep(program: Program, fd: Argument): number {
    const number = this.#restore.reserve();
    program.call("dup3", [fd, number, O_CLOEXEC], { label: "keep a socket" });
    program.call("close", [fd]);
    return number;
  }
}

/** Whose a socket is; undefined for root's. */
export function socketUser({ reprise }: UnixSkEntry): UserIds | undefined {
  const { uid, gid } = reprise ?? {};
  return uid === undefined || gid === undefined ? undefined : { uid, gid };
}

/** Who its peer was; of a listener, who listens. */
export function peerUser({ reprise }: UnixSkEntry): UserIds | undefined {
  const { peer_uid: uid, peer_gid: gid } = reprise ?? {};
  return uid === undefined || gid === undefined ? undefined : { uid, gid };
}

/** The error for a socket that cannot come back. */
export function refusedUnix(
  entry: UnixSkEntry,
  why: string,
  more: { readonly hint?: string } = {},
): RepriseError {
  return new RepriseError("UNSUPPORTED", `cannot restore ${what(entry)}: ${why}`, more);
}

/** Tells of a socket file whether somebody is bound to it. */
function usedFiles(): (stat: Stats) => boolean {
  let used: ReadonlySet<string> | undefined;
  return ({ dev, ino }) => {
    used ??= new Set(
      readUnixSockets().flatMap(({ file, state, peer }) =>
        // An accepted connection has its listener's file too, and may outlive it.
        file === undefined || (state === so.TCP_ESTABLISHED && peer !== undefined)
          ? []
          : [`${file.device}:${file.inode}`],
      ),
    );
    const device = deviceMajor(BigInt(dev)) * 2 ** 20 + deviceMinor(BigInt(dev));
    return used.has(`${device}:${ino % 2 ** 32}`);
  };
}
