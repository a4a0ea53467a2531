// Ditail: take the content image's size over into txt2img's width and height.
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

// The caches' sizes in the settings, whenever that tab is opened.
onUiTabChange(() => {
    if (gradioApp().querySelector("#tab_settings")?.offsetParent) {
        gradioApp().querySelector("#ditail_refresh_caches")?.click();
    }
});
