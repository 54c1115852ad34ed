// What a caller says about mounts, at dump and at restore; `mnt[…]` and `dev[…]` stand among the words of --external.

import { parseExternalMounts, type ExternalMounts } from "./external.ts";

export interface MountOptions {
  /** `--enable-external-sharing`. @default false */
  readonly externalSharing?: boolean;
  /** `--enable-external-masters`. @default false */
  readonly externalMasters?: boolean;
  /** `--skip-mnt`: mount points that are left out. @default [] */
  readonly skip?: readonly string[];
  /** `--enable-fs`: file systems that are simply mounted again, or `all`. @default [] */
  readonly enableFs?: readonly string[];
  /** `--lsm-mount-context`: stands for the SELinux context of mounts that had one. @default their own */
  readonly lsmContext?: string;
}

/** All about external mounts. @throws RepriseError BAD_ARGUMENT */
export function externalMounts(
  external: readonly string[],
  options: MountOptions = {},
): ExternalMounts {
  return parseExternalMounts({
    external,
    sharing: options.externalSharing ?? false,
    masters: options.externalMasters ?? false,
  });
}
