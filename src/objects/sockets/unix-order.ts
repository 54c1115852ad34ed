// The order of unix sockets in files.img: CRIU finds a socket's peer only if it has read it before, or if the peer names the
// socket in turn.

import type { FileEntry } from "../../images/schema/messages.generated.ts";

/** Entries in their order, but that of a unix socket's peer before the socket's own. */
export function peersFirst(entries: readonly FileEntry[]): FileEntry[] {
  const sockets = new Map(
    entries.flatMap((entry) => (entry.usk === undefined ? [] : [[entry.usk.ino, entry] as const])),
  );
  const ordered = new Set<FileEntry>();
  const visiting = new Set<FileEntry>();
  const add = (entry: FileEntry): void => {
    if (visiting.has(entry)) return;
    visiting.add(entry);
    const peer = sockets.get(entry.usk?.peer ?? 0);
    if (peer !== undefined) add(peer);
    ordered.add(entry);
  };
  for (const entry of entries) add(entry);
  return [...ordered];
}
