// Namespaces that somebody else keeps: named at the dump by `--external KIND[INODE]:KEY`, brought to the restore by `--inherit-fd
// fd[N]:KEY`. Of such a network or pid namespace only the key is saved.

import { RepriseError } from "../../errors.ts";
import type { ImageSetWriter } from "../../images/image-set.ts";
import { EMPTY_NETNS } from "../network/netns-entry.ts";
import type { CollectedNamespace } from "./collect.ts";

/** Saves the key of an external namespace. @throws RepriseError UNSUPPORTED for kinds whose images have no place for one. */
export function writeExternal(
  { kind, id, externalKey: key, inode, pid }: CollectedNamespace,
  images: ImageSetWriter,
): void {
  if (key === undefined) return;
  if (kind === "pid") images.write("pidns", id, [{ ext_key: key }]);
  else if (kind === "net") images.write("netns", id, [{ ...EMPTY_NETNS, ext_key: key }]);
  else {
    throw new RepriseError(
      "UNSUPPORTED",
      `cannot dump pid ${pid}: a ${kind} namespace (${inode}) cannot be external`,
      { pid, hint: "Only network and pid namespaces can; join others at the restore (--join-ns)." },
    );
  }
}
