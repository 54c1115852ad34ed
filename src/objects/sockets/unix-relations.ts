// What the unix sockets of an image set have to do with each other: who is connected to whom, who was accepted by whom, and who
// can send to whom. Pure: it knows the images alone.

import { RepriseError } from "../../errors.ts";
import type { LoadedSet } from "../../images/check-set.ts";
import type { UnixSkEntry } from "../../images/schema/messages.generated.ts";
import * as so from "../../sys/abi/socket.ts";

/** uflags of a socket outside of the tree. */
export const USK_EXTERN = 1;

/** The sockets of a set by their inodes. */
export class UnixRelations {
  readonly #entries: ReadonlyMap<number, UnixSkEntry>;
  readonly #listeners: readonly UnixSkEntry[];
  /** Who is connected to a socket, by its inode. */
  readonly #followers = new Map<number, UnixSkEntry[]>();

  constructor(set: Pick<LoadedSet, "files">) {
    const entries = [...set.files.values()].flatMap(({ usk }) => usk ?? []);
    this.#entries = new Map(entries.map((entry) => [entry.ino, entry]));
    this.#listeners = entries.filter(
      ({ state, uflags }) => state === so.TCP_LISTEN && (uflags & USK_EXTERN) === 0,
    );
    for (const entry of entries) {
      if (entry.peer === 0 || entry.peer === entry.ino) continue;
      const followers = this.#followers.get(entry.peer);
      if (followers === undefined) this.#followers.set(entry.peer, [entry]);
      else followers.push(entry);
    }
  }

  /** The socket with an inode. */
  find(inode: number): UnixSkEntry | undefined {
    return this.#entries.get(inode);
  }

  datagramNamed(name: Uint8Array): UnixSkEntry | undefined {
    return [...this.#entries.values()].find(
      (entry) => entry.type === so.SOCK_DGRAM && Buffer.from(entry.name).equals(name),
    );
  }

  /** The end of a connection that was accepted: it has its listener's name. */
  accepted(entry: UnixSkEntry, peer: UnixSkEntry | undefined): UnixSkEntry | undefined {
    return [entry, peer].find((one) => one !== undefined && this.listenerOf(one) !== undefined);
  }

  /** A listener of the tree that has the same name. */
  listenerOf({ name, name_dir, type, ino }: UnixSkEntry): UnixSkEntry | undefined {
    if (name.length === 0) return undefined;
    return this.#listeners.find(
      (one) =>
        one.ino !== ino &&
        one.type === type &&
        one.name_dir === name_dir &&
        Buffer.from(one.name).equals(name),
    );
  }

  /** A client that its listener has not accepted yet. */
  waits(entry: UnixSkEntry): boolean {
    if (entry.type === so.SOCK_DGRAM || entry.state !== so.TCP_ESTABLISHED) return false;
    return entry.peer !== 0 && this.peer(entry).state === so.TCP_LISTEN;
  }

  /** Connected to each other, and nobody else to one of them. */
  isPair(entry: UnixSkEntry, peer: UnixSkEntry): boolean {
    if (peer.peer !== entry.ino || peer === entry) return false;
    const others = [...this.others(entry), ...this.others(peer)];
    return others.every((one) => one === entry || one === peer);
  }

  /** Who is connected to a socket. */
  others({ ino }: UnixSkEntry): UnixSkEntry[] {
    return this.#followers.get(ino) ?? [];
  }

  /** A socket that can send into another one: its peer, itself, or a socket that is connected to it. */
  sender(entry: UnixSkEntry): UnixSkEntry | undefined {
    if (entry.peer !== 0) {
      const peer = this.#entries.get(entry.peer);
      return peer?.peer === entry.ino ? peer : undefined;
    }
    return this.others(entry)[0];
  }

  /** Whom a socket is connected to. @throws RepriseError BAD_IMAGE if it is not in the set. */
  peer(entry: UnixSkEntry): UnixSkEntry {
    const peer = this.#entries.get(entry.peer);
    if (peer === undefined) {
      throw new RepriseError(
        "BAD_IMAGE",
        `cannot restore ${what(entry)}: files.img has no socket ${entry.peer}, its peer`,
      );
    }
    return peer;
  }
}

/** A socket, for errors and logs. */
export function what({ ino, id }: UnixSkEntry): string {
  return `unix socket ${ino} (file ${id})`;
}
