// Ditail in the page: what the browser alone knows, and what follows it. All of it does nothing while Ditail is off.

const DITAIL_TABS = ["txt2img", "img2img"];
const ditailTimers = {};

function ditailElement(tab, name) {
    return gradioApp().querySelector(`#${tab}_ditail_${name}`);
}

function ditailIsOn(tab) {
    return Boolean(ditailElement(tab, "enabled-checkbox")?.querySelector("input")?.checked
        ?? gradioApp().querySelector(`#${tab}_ditail_enabled-visible-checkbox`)?.checked);
}

function ditailSet(tab, name, value) {
    const input = ditailElement(tab, name)?.querySelector("textarea, input");
    if (!input || input.value === value) return;
    input.value = value;
    updateInput(input);
}

// Click a hidden button, once the page is at rest: gradio drops an event that comes while an earlier one is answered.
function ditailLater(tab, button) {
    const timer = `${tab} ${button}`;
    clearTimeout(ditailTimers[timer]);
    ditailTimers[timer] = setTimeout(() => ditailElement(tab, button)?.click(), 250);
    return [];
}

// Wait for what `condition` returns to be true, for so many seconds at most. Returns whether it is.
async function ditailUntil(condition, seconds) {
    for (let i = 0; i < 10 * seconds && !condition(); i++) await new Promise((resolve) => setTimeout(resolve, 100));
    return Boolean(condition());
}

// Ask for the live line anew.
function ditailRefresh(tab) {
    return ditailLater(tab, "refresh_line");
}

// The line's inputs, the last of them replaced by what only the page knows.
function ditailFacts(tab, values) {
    const app = gradioApp();
    const facts = [];
    const isShown = (selector) => Boolean(app.querySelector(selector)?.offsetParent);
    const image = ditailElement(tab, "image")?.querySelector("img");
    if (image) facts.push(image.complete && !image.naturalWidth ? "broken" : "image");
    if (ditailElement(tab, "second_image")?.querySelector("img")) facts.push("second_image");
    if (tab === "img2img") {
        const slots = ["img2img_image", "img2img_sketch", "img2maskimg", "inpaint_sketch", "img_inpaint_base"];
        if (slots.some((id) => app.querySelector(`#${id} img, #${id} canvas`)?.offsetParent)) facts.push("init");
        if (isShown("#img2img_batch_source")) facts.push("batch");
    }
    for (const unit of app.querySelectorAll(`#${tab}_controlnet .cnet-unit-tab, #${tab}_controlnet_ControlNet-0_controlnet`)) {
        const isOn = unit.querySelector(".cnet-unit-enabled input, input[type=checkbox]")?.checked;
        const preprocessor = unit.querySelector("[id$=controlnet_preprocessor_dropdown] input")?.value || "";
        if (isOn && preprocessor.startsWith("reference")) facts.push("reference");
    }
    return [...values.slice(0, -1), facts.join(" ")];
}

// The content image's slot has another image or none.
function ditailImageChanged(tab) {
    const button = ditailElement(tab, "use_size");
    setTimeout(() => {
        const image = ditailElement(tab, "image")?.querySelector("img");
        if (button) button.disabled = !image;
        if (!image) ditailSet(tab, "image_name", "");
        ditailRefresh(tab);
    }, 100);
    return [];
}

// A file for one of the slots: it is no longer missing, and the content image's name is known.
function ditailFileChosen(tab, target, files) {
    const slot = files?.length && target.closest(`[id^=${tab}_ditail_]:has(input[type=file])`);
    if (!slot) return;
    const control = slot.id.replace(`${tab}_ditail_`, "");
    const lines = (ditailElement(tab, "missing")?.querySelector("textarea")?.value || "").split("\n");
    ditailSet(tab, "missing", lines.filter((line) => !line.startsWith(`${control}\t`)).join("\n"));
    if (control === "image") ditailSet(tab, "image_name", files[0].name);
}

// Take the content image's size over into txt2img's width and height.
function ditailUseImageSize(imageId) {
    const image = gradioApp().querySelector(`#${imageId} img`);
    if (!image) return [];
    for (const [id, pixels] of [["txt2img_width", image.naturalWidth], ["txt2img_height", image.naturalHeight]]) {
        const input = gradioApp().querySelector(`#${id} input[type=number]`);
        // The model works in blocks of 8 pixels; the slider's own limits hold.
        const rounded = Math.round(pixels / 8) * 8;
        input.value = Math.min(Math.max(rounded, Number(input.min) || 64), Number(input.max) || 2048);
        updateInput(input);
    }
    return [];
}

// Generate, but the job is a preview.
function ditailPreview(tab) {
    ditailSet(tab, "task", "preview");
    setTimeout(() => {
        gradioApp().querySelector(`#${tab}_generate`).click();
        setTimeout(() => ditailSet(tab, "task", ""), 500);
    }, 100);
    return [];
}

// The gallery's (or PNG Info's) image becomes txt2img's content image, file and all, so its infotext comes along.
async function ditailSend(from) {
    const app = gradioApp();
    const shown = from === "pnginfo" ? app.querySelector("#pnginfo_image img")
        : (all_gallery_buttons()[Math.max(selected_gallery_index(), 0)] || app.querySelector(`#${from}_gallery`))
            ?.querySelector("img");
    if (!shown) return;
    const answer = await fetch(shown.src);
    const blob = await answer.blob();
    const name = shown.src.startsWith("data:") ? "image.png" : decodeURIComponent(shown.src.split("?")[0].split("/").pop());
    switch_to_txt2img();
    if (!ditailIsOn("txt2img")) ditailElement("txt2img", "enabled-checkbox")?.querySelector("input")?.click();
    const slot = ditailElement("txt2img", "image");
    // In gradio 3 and in gradio 4 (Forge).
    slot.querySelector("button[aria-label=Clear], button[aria-label='Remove Image']")?.click();
    const image = () => slot.querySelector("img");
    const input = () => slot.querySelector("input[type=file]");
    if (!await ditailUntil(() => !image() && input(), 30)) return;
    const files = new DataTransfer();
    files.items.add(new File([blob], name, {type: blob.type || "image/png"}));
    input().files = files.files;
    input().dispatchEvent(new Event("change", {bubbles: true}));
    ditailSet("txt2img", "image_name", name);
    slot.scrollIntoView({block: "center"});
    // gradio 4 shows the image once it is uploaded, and its infotext is read on the server.
    if (await ditailUntil(image, 300)) ditailLater("txt2img", "take_infotext");
}

// The collage's boxes, drawn in the proportions of the image.
function ditailDrawBoxes(tab) {
    const frame = gradioApp().querySelector(`#${tab}_ditail_collage_boxes`);
    if (!frame) return;
    const size = (name) => Number(gradioApp().querySelector(`#${tab}_${name} input[type=number]`)?.value) || 512;
    frame.style.aspectRatio = `${size("width")} / ${size("height")}`;
    frame.replaceChildren();
    for (let slot = 1; slot <= 3; slot++) {
        const text = ditailElement(tab, `collage_box_${slot}`)?.querySelector("input, textarea")?.value || "";
        const image = ditailElement(tab, `collage_image_${slot}`)?.querySelector("img");
        const numbers = text.replaceAll(",", " ").split(" ").filter(Boolean).map(Number);
        const [left, top, width, height] = numbers.length ? numbers : [0, 0, 1, 1];
        if ((!image && !numbers.length) || !(width > 0 && height > 0)) continue;
        const box = document.createElement("div");
        box.textContent = String(slot);
        Object.assign(box.style, {left: `${left * 100}%`, top: `${top * 100}%`, width: `${width * 100}%`,
            height: `${height * 100}%`, backgroundImage: image ? `url(${image.src})` : ""});
        box.classList.toggle("ditail-outside", left < 0 || top < 0 || left + width > 1.000001 || top + height > 1.000001);
        frame.append(box);
    }
}

// Errors of Ditail stand out, and are read out.
function ditailMarkErrors() {
    for (const tab of DITAIL_TABS) {
        const error = gradioApp().querySelector(`#html_log_${tab} .error:not(.ditail-error)`);
        if (error?.textContent.startsWith("Ditail: ")) {
            error.classList.add("ditail-error");
            error.setAttribute("role", "alert");
        }
    }
}

onUiLoaded(() => {
    for (const tab of DITAIL_TABS) {
        const page = gradioApp().querySelector(`#tab_${tab}`);
        for (const event of ["input", "change", "click"]) {
            page?.addEventListener(event, (e) => {
                if (!e.isTrusted && event === "click") return;
                if (!ditailIsOn(tab) || e.target.closest(`#${tab}_ditail_refresh_line`)) return;
                // gradio 3 loses an upload if the server answers something else before it has ended.
                if (e.target.closest(`#${tab}_ditail_folder_files`)) return;
                ditailRefresh(tab);
                ditailDrawBoxes(tab);
            });
        }
        page?.addEventListener("change", (e) => ditailFileChosen(tab, e.target, e.target.files), true);
        page?.addEventListener("drop", (e) => ditailFileChosen(tab, e.target, e.dataTransfer?.files), true);
    }
});

onAfterUiUpdate(ditailMarkErrors);

// Another target checkpoint.
onOptionsChanged(() => DITAIL_TABS.filter(ditailIsOn).forEach(ditailRefresh));

// The line of the tab that is opened, and the caches' sizes in the settings.
onUiTabChange(() => {
    DITAIL_TABS.filter(ditailIsOn).forEach(ditailRefresh);
    if (gradioApp().querySelector("#tab_settings")?.offsetParent) {
        gradioApp().querySelector("#ditail_refresh_caches")?.click();
    }
});

// gradio's upload areas take clicks alone: the style sheet shows our file inputs to the keyboard, here they get a name.
function ditailNameSlots() {
    // gradio 4 names them all "file upload".
    for (const input of gradioApp().querySelectorAll(
        "[id*=_ditail_] input[type=file]:is(:not([aria-label]), [aria-label='file upload'])")) {
        const label = input.closest("[id*=_ditail_]").querySelector("[data-testid=block-label]");
        if (label) input.setAttribute("aria-label", label.textContent.trim());
    }
}

onAfterUiUpdate(ditailNameSlots);
