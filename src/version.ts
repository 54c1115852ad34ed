// The version of the package, put in by the build (tools/build.ts). From source it is read as "dev".

declare const REPRISE_VERSION: string | undefined;

/** Version of this package as in package.json, or "dev" when run from source. */
export const PACKAGE_VERSION: string =
  typeof REPRISE_VERSION === "string" ? REPRISE_VERSION : "dev";

/** The release of CRIU whose command line, images and RPC we speak. */
export const CRIU_VERSION = { major: 4, minor: 2 } as const;
