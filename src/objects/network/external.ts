// Network devices that the caller brings or names: `--external veth[IN]:OUT@BRIDGE`, `macvlan[IN]:OUT`, `netdev[IN]:OUT`.

export type ExternalDeviceKind = "veth" | "macvlan" | "netdev";

/** What stands behind the colon for a device of the tree: OUT, of a veth perhaps with @BRIDGE. */
export function externalDevice(
  external: readonly string[],
  kind: ExternalDeviceKind,
  device: string,
): string | undefined {
  const prefix = `${kind}[${device}]:`;
  return external.find((word) => word.startsWith(prefix))?.slice(prefix.length);
}

/** Whether the caller brings a device, or says that he will. */
export function isExternalDevice(external: readonly string[], device: string): boolean {
  return external.some(
    (word) => word === `netdev[${device}]` || word.startsWith(`netdev[${device}]:`),
  );
}
