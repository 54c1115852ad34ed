// What CRIU's options say about mounts.

import type { MountOptions } from "../objects/mounts/options.ts";
import type { CriuOptions } from "./options.ts";

/** The engine's options about mounts that options of CRIU stand for. */
export function mountOptions({ flags, lists, values }: CriuOptions): MountOptions {
  const lsmContext = values["lsm-mount-context"];
  return {
    ...(lsmContext === undefined ? {} : { lsmContext }),
    externalSharing: flags.has("enable-external-sharing"),
    externalMasters: flags.has("enable-external-masters"),
    skip: lists["skip-mnt"] ?? [],
    enableFs: lists["enable-fs"] ?? [],
  };
}
