// From any picture that the browser can open to the small JPEG that is sent.

const MAX_BYTES = 50e6;
// Cameras of 108 megapixels pass; decoded, such a photo takes 430 MB.
const MAX_PIXELS = 120e6;
// What is sent has this many pixels a side, or as many as the model looks at if that is more. Where
// the endpoint shrinks it, what JPEG loses averages out; and a stored correction stays of use for
// models that look closer. 88 photos took 11 kB each, and a model of 112 pixels then sees them 1.4
// of 255 levels off; it would be 2.2 if 112 pixels were sent.
const SIDE = 224;
const QUALITY = 0.85;

// The message is the sentence that the reader gets.
export class Refusal extends Error {}

// The central square of a picture, upright, on white, as a small JPEG: what an endpoint whose model
// looks at `imageSize` pixels a side would cut out itself. Rejects with a Refusal.
export async function prepare(file, imageSize) {
  const name = file.name ? `“${file.name}”` : "The picture";
  if (file.size === 0) throw new Refusal(`${name} is empty: choose another file.`);
  if (file.size > MAX_BYTES) {
    throw new Refusal(
      `${name} has ${Math.ceil(file.size / 1e6)} MB, and at most ${MAX_BYTES / 1e6} MB can be ` +
        "opened here: choose a smaller copy.",
    );
  }
  let bitmap;
  try {
    const pixels = await countPixels(file);
    if (pixels > MAX_PIXELS) {
      throw new Refusal(
        `${name} has ${Math.round(pixels / 1e6)} million pixels, and at most ` +
          `${MAX_PIXELS / 1e6} million can be opened here: choose a smaller copy.`,
      );
    }
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch (error) {
    throw error instanceof Refusal ? error : new Refusal(await whyUnreadable(file, name));
  }
  try {
    const canvas = centralSquare(bitmap, Math.max(imageSize, SIDE));
    // A quarter of the pixels takes no more bytes at the best quality, and needs it.
    const quality = canvas.width > SIDE / 2 ? QUALITY : 1;
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", quality));
  } finally {
    bitmap.close();
  }
}

// Reads the header: a browser decodes an image that is not shown only when it has to.
async function countPixels(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = reject;
    });
    return image.naturalWidth * image.naturalHeight;
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

function centralSquare(bitmap, target) {
  let side = Math.min(bitmap.width, bitmap.height);
  let source = bitmap;
  let left = (bitmap.width - side) / 2;
  let top = (bitmap.height - side) / 2;
  do {
    // By half at most: bilinear filtering skips pixels when it shrinks by more.
    const next = Math.min(side, Math.max(target, Math.ceil(side / 2)));
    const canvas = Object.assign(document.createElement("canvas"), { width: next, height: next });
    const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, next, next);
    context.drawImage(source, left, top, side, side, 0, 0, next, next);
    [source, side, left, top] = [canvas, next, 0, 0];
  } while (side > target);
  return source;
}

async function whyUnreadable(file, name) {
  const head = file.slice(0, 16).arrayBuffer();
  const bytes = new Uint8Array(await head.catch(() => [])); // A dropped folder has no bytes.
  const start = String.fromCharCode(...bytes);
  if (/^....ftyp(hei|hev|mif1|msf1)/s.test(start)) {
    return "This browser cannot open HEIC photos: save it as JPEG and choose that one.";
  }
  if (/^(\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|BM|....ftypavif)/s.test(start)) {
    return `${name} is damaged or incomplete: choose another file.`;
  }
  return `${name} is not a picture that can be opened: choose a JPEG, PNG or WebP file.`;
}
